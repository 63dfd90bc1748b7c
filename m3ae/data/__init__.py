"""From a published data set to batches: sources, prepared shards, collation."""
