"""What trained models do, as functions: the commands, the app and other programs call the same ones.

Nothing here needs more than `pip install m3ae`, but that prepared sets and tables are read with the extra `train`.
"""

from m3ae.inference.answering import Answer, answer
from m3ae.inference.attention import WordAttention, word_attention
from m3ae.inference.collections import Collection, open_collection
from m3ae.inference.generation import generate, traverse
from m3ae.inference.inputs import load_generator, load_model, read_images
from m3ae.inference.reconstruction import MaskedWord, Reconstruction, reconstruct
from m3ae.inference.search import Hit, SearchIndex, index_folder, open_index

__all__ = [
    "Answer",
    "Collection",
    "Hit",
    "MaskedWord",
    "Reconstruction",
    "SearchIndex",
    "WordAttention",
    "answer",
    "generate",
    "index_folder",
    "load_generator",
    "load_model",
    "open_collection",
    "open_index",
    "read_images",
    "reconstruct",
    "traverse",
    "word_attention",
]
