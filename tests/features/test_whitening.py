"""Whitening against closed forms: identity covariance, unchanged by a rotation, the same for everybody."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from isthmus.errors import ConfigError, DataError
from isthmus.features import TextMoments, Whitening, fit_whitening, own_axes, text_moments

Floats = NDArray[np.float32]


def catalogue(seed: int, items: int, dim: int = 12) -> Floats:
    """Features with a mean and strongly unequal, correlated directions."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dim, dim)) * np.geomspace(1, 0.05, dim)[:, None]
    return (rng.normal(size=(items, dim)) @ mix + rng.normal(size=dim)).astype(np.float32)


def linear(whitening: Whitening, features: Floats) -> NDArray[np.float64]:
    """The transform without the scaling of rows, in double precision."""
    return (features.astype(np.float64) - whitening.mean) @ whitening.matrix.astype(np.float64)


def test_moments_are_those_of_the_catalogue() -> None:
    """Against numpy's own mean and covariance."""
    features = catalogue(1, 200)
    moments = text_moments(features)
    assert moments.count == 200
    np.testing.assert_allclose(moments.mean, features.astype(np.float64).mean(axis=0), atol=1e-12)
    covariance = moments.second - np.outer(moments.mean, moments.mean)
    np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64), rowvar=False, ddof=0), atol=1e-10)


def test_items_without_text_do_not_move_the_moments() -> None:
    """A zero row is the absence of a text, not a text at the origin."""
    features = catalogue(1, 50)
    padded = np.concatenate([features, np.zeros((50, 12), dtype=np.float32)])
    with_blanks, without = text_moments(padded), text_moments(features)
    assert with_blanks.count == without.count == 50
    np.testing.assert_array_equal(with_blanks.second, without.second)


@pytest.mark.parametrize("dim", [None, 12, 5])
def test_pooled_catalogues_get_identity_covariance(dim: int | None) -> None:
    """Catalogues of unequal size count as one big catalogue; after whitening it has covariance I."""
    parts = [catalogue(1, 30), catalogue(2, 400), catalogue(3, 170)]
    whitening = fit_whitening([text_moments(part) for part in parts], eps=1e-9, dim=dim)
    white = linear(whitening, np.concatenate(parts))
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white, rowvar=False, ddof=0), np.eye(dim or 12), atol=1e-3)


@pytest.mark.parametrize("eps", [1e-3, 0.1, 1.0])
def test_the_ridge_is_relative_to_the_mean_eigenvalue(eps: float) -> None:
    """Covariance after whitening is U diag(l / (l + eps mean(l))) U^T."""
    features = catalogue(4, 300)
    values, axes = np.linalg.eigh(np.cov(features.astype(np.float64), rowvar=False, ddof=0))
    expected = axes @ np.diag(values / (values + eps * values.mean())) @ axes.T
    white = linear(fit_whitening([text_moments(features)], eps=eps, dim=None), features)
    np.testing.assert_allclose(np.cov(white, rowvar=False, ddof=0), expected, atol=1e-4)


def test_the_unit_of_the_features_does_not_matter() -> None:
    """A relative ridge is blind to scale."""
    features = catalogue(4, 300)
    one = fit_whitening([text_moments(features)], eps=1e-2, dim=None).apply(features)
    ten = fit_whitening([text_moments(10 * features)], eps=1e-2, dim=None).apply(10 * features)
    np.testing.assert_allclose(one, ten, atol=1e-4)


@pytest.mark.parametrize("dim", [None, 5])
def test_rotating_the_encoder_changes_no_cosine(dim: int | None) -> None:
    """The axes of an encoder are arbitrary; similarities after whitening are not."""
    features = catalogue(5, 300)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    rotated = (features @ rotation).astype(np.float32)
    plain = fit_whitening([text_moments(features)], eps=1e-2, dim=dim).apply(features)
    turned = fit_whitening([text_moments(rotated)], eps=1e-2, dim=dim).apply(rotated)
    np.testing.assert_allclose(plain @ plain.T, turned @ turned.T, atol=2e-3)


def test_all_principal_axes_have_the_cosines_of_zca() -> None:
    """PCA with every axis kept is ZCA but for a rotation."""
    features = catalogue(5, 300)
    moments = [text_moments(features)]
    zca = fit_whitening(moments, eps=1e-2, dim=None).apply(features)
    pca = fit_whitening(moments, eps=1e-2, dim=12).apply(features)
    np.testing.assert_allclose(zca @ zca.T, pca @ pca.T, atol=1e-4)


def test_fewer_axes_are_the_leading_ones_with_settled_signs() -> None:
    """The k kept axes are the first k of more, largest variance first, largest entry positive."""
    features = catalogue(6, 300)
    moments = [text_moments(features)]
    few, more = (fit_whitening(moments, eps=1e-2, dim=dim).matrix for dim in (3, 8))
    np.testing.assert_array_equal(few, more[:, :3])
    peaks = more[np.abs(more).argmax(axis=0), np.arange(8)]
    assert (peaks > 0).all()
    axes = more / np.linalg.norm(more, axis=0)
    variances = (np.asarray(features - features.mean(axis=0), dtype=np.float64) @ axes).var(axis=0)
    assert (np.diff(variances) < 0).all()


def test_the_order_of_the_domains_does_not_matter() -> None:
    """Every domain that fits for itself gets the transform of the others."""
    moments = [text_moments(catalogue(seed, 40 * seed)) for seed in (1, 2, 3)]
    one = fit_whitening(moments, eps=1e-3, dim=None)
    other = fit_whitening(moments[::-1], eps=1e-3, dim=None)
    np.testing.assert_allclose(one.matrix, other.matrix, rtol=1e-4, atol=1e-4)


def test_rows_have_length_one_and_zero_rows_stay_zero() -> None:
    """So does the row at the mean, which has no direction left."""
    features = catalogue(7, 60)
    whitening = fit_whitening([text_moments(features)], eps=1e-3, dim=6)
    given = np.concatenate([features, np.zeros((1, 12), dtype=np.float32), whitening.mean[None]])
    white = whitening.apply(given)
    assert white.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(white[:60], axis=1), 1, atol=1e-5)
    assert not white[60:].any()


def test_fewer_items_than_dimensions_are_whitened() -> None:
    """A tiny federation has a covariance without full rank; the ridge carries it."""
    features = catalogue(8, 3)
    white = fit_whitening([text_moments(features)], eps=1e-3, dim=None).apply(features)
    assert np.isfinite(white).all()
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, atol=1e-4)


def test_a_domain_without_any_text_does_not_matter() -> None:
    """Its moments have count 0 and weigh nothing."""
    moments, none = text_moments(catalogue(1, 40)), text_moments(np.zeros((5, 12), dtype=np.float32))
    assert none.count == 0
    alone = fit_whitening([moments], eps=1e-3, dim=None)
    np.testing.assert_array_equal(fit_whitening([none, moments], eps=1e-3, dim=None).matrix, alone.matrix)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_one_text_or_none_cannot_be_whitened(rows: int) -> None:
    """There is no direction to scale."""
    same = np.ones((rows, 4), dtype=np.float32) / 2
    with pytest.raises(DataError, match="at least two different item texts"):
        fit_whitening([text_moments(same)], eps=1e-3, dim=None)


@pytest.mark.parametrize(("eps", "dim"), [(0.0, None), (-1.0, None), (float("nan"), None), (1e-3, 0), (1e-3, 13)])
def test_settings_out_of_range_are_refused(eps: float, dim: int | None) -> None:
    """A user sets both; the message has the value."""
    with pytest.raises(ConfigError, match=rf"got {re.escape(str(eps if dim is None else dim))}"):
        fit_whitening([text_moments(catalogue(1, 40))], eps=eps, dim=dim)


def test_catalogues_of_different_encoders_are_refused() -> None:
    """Their axes mean different things."""
    with pytest.raises(ConfigError, match="features have 6 and 12 dimensions"):
        fit_whitening([text_moments(catalogue(1, 9)), text_moments(catalogue(1, 9, 6))], eps=1e-3, dim=None)


def test_impossible_moments_are_refused() -> None:
    """Moments come from other domains: shapes and values are checked."""
    mean, second = np.zeros(3), np.eye(3)
    with pytest.raises(DataError, match="need count >= 0"):
        TextMoments(count=-1, mean=mean, second=second)
    with pytest.raises(DataError, match=r"second \(2, 2\)"):
        TextMoments(count=1, mean=mean, second=np.eye(2))
    with pytest.raises(DataError, match="must be finite"):
        TextMoments(count=1, mean=np.array([0, np.nan, 0]), second=second)


def left_by(whitening: Whitening, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Covariance of a catalogue after a transform, before its rows are scaled."""
    return np.cov((rows.astype(np.float64) - whitening.mean) @ whitening.matrix, rowvar=False, bias=True)


@pytest.mark.parametrize("dim", [None, 4])
def test_a_catalogue_of_ones_own_is_whitened_as_far_as_it_is_large_enough(dim: int | None) -> None:
    """S (w S + (1 - w) I)^-1, with S what the pooled whitening leaves, and the mean w of the way."""
    own, others = catalogue(seed=1, items=60), catalogue(seed=2, items=500)
    pooled = fit_whitening([text_moments(own), text_moments(others)], eps=1e-3, dim=dim)
    found, weight = own_axes(pooled, own), 60 / (60 + own.shape[1])
    before = left_by(pooled, own)
    expected = before @ np.linalg.inv(weight * before + (1 - weight) * np.eye(len(before)))
    np.testing.assert_allclose(left_by(found, own), expected, atol=1e-4)
    np.testing.assert_allclose(found.mean, pooled.mean + weight * (own.mean(axis=0) - pooled.mean), atol=1e-5)
    assert np.linalg.cond(left_by(found, own)) < np.linalg.cond(before) / 2


def test_a_catalogue_without_text_keeps_the_pooled_axes() -> None:
    """There is nothing of its own; and one with a few items is moved a little, not torn apart."""
    others = catalogue(seed=2, items=500)
    pooled = fit_whitening([text_moments(others)], eps=1e-3, dim=None)
    none = own_axes(pooled, np.zeros((3, others.shape[1]), np.float32))
    np.testing.assert_allclose(none.matrix, pooled.matrix, atol=1e-6)
    np.testing.assert_allclose(none.mean, pooled.mean, atol=1e-6)
    few = others[:3]
    cosines, before = (np.corrcoef(one.apply(few)) for one in (own_axes(pooled, few), pooled))
    assert np.abs(cosines - before).max() < 0.5
