"""Evaluation of what the masked and the latent passes have learnt."""
