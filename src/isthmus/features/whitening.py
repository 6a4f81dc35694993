"""One whitening for all domains, fitted on the pooled moments of their public catalogues; or one of each domain's own.

    moments = text_moments(features)                         # in each domain, of public text
    whitening = fit_whitening([...], eps=1e-3, dim=None)     # once; the same axes for everybody
    whitening = own_axes(whitening, features)                # where nothing is learned about axes
    item_features = whitening.apply(features)

Sentence vectors crowd into a few directions, so their cosines say little. Whitening gives every
direction of the pooled text the same variance. A `dim` keeps the leading principal axes (PCA); none
keeps them all and turns back to the axes of the encoder (ZCA), which changes no cosine.

Moments of a catalogue say nothing about users. They are additive, so no text has to move either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import ConfigError, DataError

_TINY = 1e-12  # squared length below which centred texts are all the same


@dataclass(frozen=True, kw_only=True)
class TextMoments:
    """First two moments of the features of one public catalogue.

    Attributes:
        count: Items with text; a zero row is an item without one and is left out.
        mean: E[x], (dim,).
        second: E[x x^T], (dim, dim).
    """

    count: int
    mean: NDArray[np.float64]
    second: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what cannot be moments.

        Raises:
            DataError: If count, shapes or values are impossible.
        """
        dim = self.mean.size
        if self.count < 0 or self.mean.shape != (dim,) or self.second.shape != (dim, dim):
            raise DataError(
                f"text moments need count >= 0, mean (dim,) and second (dim, dim), got count {self.count}, "
                f"mean {self.mean.shape} and second {self.second.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.second).all()):
            raise DataError("text moments must be finite: the features they were taken from are damaged")


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """The shared transform from encoder features to item features.

    Attributes:
        mean: Subtracted first, (dim,).
        matrix: Then applied from the right, (dim, kept).
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The transform as named tensors: how it travels and is kept."""
        return {"mean": self.mean, "matrix": np.ascontiguousarray(self.matrix)}

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Centre, whiten, and scale every row to length 1.

        Args:
            features: (items, dim) of the encoder that the moments were taken with.

        Returns:
            (items, kept). A zero row (an item without text) stays zero, and so does a row at the mean.
        """
        white = (features - self.mean) @ self.matrix  # (items, kept)
        norms = np.linalg.norm(white, axis=1, keepdims=True)
        keep = features.any(axis=1, keepdims=True) & (norms > 0)
        scaled: NDArray[np.float32] = np.divide(white, norms, out=np.zeros_like(white), where=keep)
        return scaled


def text_moments(features: NDArray[np.float32]) -> TextMoments:
    """Moments of the features (items, dim) of one public catalogue, in double precision.

    >>> text_moments(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=np.float32)).mean
    array([0.5, 0.5])
    """
    rows = features[features.any(axis=1)].astype(np.float64)
    count = len(rows)
    return TextMoments(
        count=count,
        mean=rows.sum(axis=0) / max(count, 1),
        second=rows.T @ rows / max(count, 1),
    )


def fit_whitening(moments: Sequence[TextMoments], *, eps: float, dim: int | None) -> Whitening:
    """Fit the one transform of a federation.

    Catalogues are pooled by their number of items with text, as if all of them were one.

    Args:
        moments: One of each catalogue, in any order; all of one encoder.
        eps: Ridge added to the eigenvalues of the pooled covariance, relative to their mean, > 0.
        dim: Principal axes kept, from the largest; None for all, in the encoder's axes (ZCA).

    Returns:
        A transform with which the pooled catalogue has covariance U diag(l / (l + eps * mean(l))) U^T before
        rows are scaled: the identity but for the ridge. The sign of a kept axis is such that its entry of
        largest magnitude is positive.

    Raises:
        ConfigError: If eps or dim is out of range, or the catalogues used different encoders.
        DataError: If there are not two different texts.
    """
    mean, covariance = _pool(moments)
    width = len(mean)
    if not eps > 0:
        raise ConfigError(f"whitening eps must be above 0, got {eps}")
    if dim is not None and not 1 <= dim <= width:
        raise ConfigError(f"features kept after whitening must be from 1 to the encoder's {width}, got {dim}")
    values, axes = np.linalg.eigh(covariance)  # ascending
    values = np.maximum(values, 0)  # rounding
    if values.sum() < _TINY:
        raise DataError("whitening needs at least two different item texts in the federation's catalogues")
    scaled = axes / np.sqrt(values + eps * values.mean())  # (dim, dim), an axis per column
    if dim is None:
        matrix = scaled @ axes.T
    else:
        matrix = scaled[:, ::-1][:, :dim]
        peaks = matrix[np.abs(matrix).argmax(axis=0), np.arange(dim)]
        matrix = matrix * np.sign(peaks)
    return Whitening(mean=mean.astype(np.float32), matrix=matrix.astype(np.float32))


def own_axes(pooled: Whitening, features: NDArray[np.float32]) -> Whitening:
    """The whitening of one domain's own catalogue, as far as it is large enough to know it.

    Axes that fit many catalogues fit none of them well (docs/experiments.md). A recipe that learns nothing about axes
    needs none in common, so each domain whitens what the pooled whitening left of its own covariance: correlation
    alignment (Sun, Feng and Saenko, "Return of Frustratingly Easy Domain Adaptation", AAAI 2016), with the catalogue's
    moments shrunk towards the pooled ones by as many items as there are dimensions. Of a catalogue with fewer items
    than dimensions every item would otherwise be as far from every other.

    Args:
        pooled: Of all catalogues.
        features: (items, dim) of the domain's own, of the same encoder.

    Returns:
        A transform of the same shape. With w = items / (items + dim): the mean is w of the way from the pooled to the
        own one, and the own catalogue has covariance S (w S + (1 - w) I)^-1 where `pooled` leaves it with S.
    """
    moments = text_moments(features)
    own = moments.count / (moments.count + len(pooled.mean))
    matrix = pooled.matrix.astype(np.float64)
    left = matrix.T @ (moments.second - np.outer(moments.mean, moments.mean)) @ matrix
    values, axes = np.linalg.eigh(own * left + (1 - own) * np.eye(len(left)))
    matrix = matrix @ (axes / np.sqrt(values)) @ axes.T
    mean = pooled.mean + own * (moments.mean - pooled.mean)
    return Whitening(mean=mean.astype(np.float32), matrix=matrix.astype(np.float32))


def _pool(moments: Sequence[TextMoments]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (dim,) and covariance (dim, dim) of all catalogues as one."""
    total = sum(each.count for each in moments)
    if total == 0:
        raise DataError("whitening needs at least two different item texts in the federation's catalogues")
    widths = sorted({len(each.mean) for each in moments})
    if len(widths) > 1:
        raise ConfigError(
            f"catalogues were encoded by different encoders: their features have {widths[0]} and {widths[-1]} "
            "dimensions. Use one encoder for the federation."
        )
    mean = sum((each.count / total * each.mean for each in moments), start=np.zeros(widths[0]))
    second = sum((each.count / total * each.second for each in moments), start=np.zeros((widths[0], widths[0])))
    return mean, second - np.outer(mean, mean)
