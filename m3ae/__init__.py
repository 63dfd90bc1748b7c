"""Masked multimodal autoencoders for medical images and text."""
