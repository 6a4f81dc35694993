"""Isthmus: privacy-preserving federated transfer learning for recommendation.

Business units keep their users' histories; a shared backbone is fine-tuned in each of them
under user-level differential privacy, so that knowledge moves and data does not.

The four role folders at the root of the repository (`server`, `clients`, `strategies`,
`privacy`) are this package's sub-packages of the same names.
"""

__version__ = "0.1.0"
