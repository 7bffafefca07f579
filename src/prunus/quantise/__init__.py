"""Quantising what was pruned, by torchao: fewer bits a weight, with zeros counted before and after."""

from prunus.quantise.method import Quantisation
from prunus.quantise.quantise import Quantised, quantise_folder

__all__ = ["Quantisation", "Quantised", "quantise_folder"]
