"""What trained models do, as functions for the commands, the app and other programs.

`pip install m3ae` is enough; only prepared sets and tables need the extra `train`.
"""

from m3ae.inference.attention import WordAttention, word_attention
from m3ae.inference.collections import Collection, open_collection
from m3ae.inference.generation import generate, traverse
from m3ae.inference.inputs import load_generator, load_model, read_images
from m3ae.inference.prediction import predict
from m3ae.inference.reconstruction import MaskedWord, Reconstruction, reconstruct
from m3ae.inference.reports import write_reports
from m3ae.inference.search import Hit, SearchIndex, index_folder, open_index
from m3ae.inference.zero_shot import ZeroShotClassifier

__all__ = [
    "Collection",
    "Hit",
    "MaskedWord",
    "Reconstruction",
    "SearchIndex",
    "WordAttention",
    "ZeroShotClassifier",
    "generate",
    "index_folder",
    "load_generator",
    "load_model",
    "open_collection",
    "open_index",
    "predict",
    "read_images",
    "reconstruct",
    "traverse",
    "word_attention",
    "write_reports",
]
