"""One module per published data set: `FEATURES` and `rows(...)`, as `m3ae.data.prepare` expects them."""
