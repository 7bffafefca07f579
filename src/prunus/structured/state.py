"""What a search remembers."""

from torch import Tensor

State = dict[str, dict[str, Tensor]]
"""What a method remembers: kind → unit → tensor. `Search` saves and restores it as it is."""
