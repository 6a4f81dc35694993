"""Pre-training in the open: a backbone from histories that their domains have declared public, without noise.

    origin = pretrain(Path("public.toml"), out=Path("backbone.safetensors"), passes=8, watcher=watcher)
    origin.domains, origin.gain

A domain says by itself that everybody may know its histories: `public = true` in `[interactions]` of its `domain.toml`.
Nothing else is ever trained on here. The federation file says how: its `[features]`, `[backbone]` and `[training]`, but
for what is about noise; Adam in place of its optimizer. A federation may start from the file that comes of it.
"""

from collections.abc import Sequence
from pathlib import Path

from isthmus.backbone_file import Origin, ShippedBackbone, save_backbone
from isthmus.clients.data import DomainData, open_domain_data
from isthmus.clients.trainer import make_training_set
from isthmus.config import DomainConfig, PublicDomain, Trained, load_domain, load_federation
from isthmus.errors import ConfigError, PolicyRefused, Refused
from isthmus.features import default_cache_dir, encode_texts, fit_whitening, text_moments
from isthmus.packing import arrays_digest
from isthmus.records import recipe_of
from isthmus.simulation.ceiling import Pooled, train_centralised
from isthmus.simulation.noise_free import require_allowed
from isthmus.simulation.run import Watcher


def pretrain(file: Path, *, out: Path, passes: int, watcher: Watcher) -> Origin:
    """Train a backbone in the open, and write it.

    Args:
        file: Federation file; every domain in it must be public.
        out: File of the backbone; its folder must exist.
        passes: At most so many over all users; it stops where the domains' own validation items say so.
        watcher: Told about progress.

    Returns:
        What the file says of its origin. The same seed gives the same bytes.

    Raises:
        ConfigError: If a file is wrong, or a domain's histories are not declared public; no table was opened then.
        DataError: If a table cannot be read as declared.
        Refused: If a domain's `policy.toml` is against training without noise, or nothing was learned.

    Guarantees:
        - No history of a domain that has not declared them public is opened.
        - What is written scores above the text prior on the domains' validation items.
    """
    federation = load_federation(file)
    if federation.backbone.module is not None:
        raise ConfigError(f"{file}: `backbone.module`: what is trained here is the built-in backbone; leave it out")
    if federation.training.train is Trained.TEXT:
        raise ConfigError(f'{file}: `train = "text"`: a federation cannot begin with a changed text encoder yet')
    domains = tuple(load_domain(folder) for folder in federation.domain_folders())
    _require_sense(file, out=out, passes=passes, started=federation.backbone.start is not None)
    for domain in domains:
        _require_public(domain)
    # 1. Texts, and the axes of all of them pooled.
    found: list[DomainData] = []
    encoded = []
    for domain in domains:
        watcher.stage(f"reading {domain.name} and encoding its item texts")
        found.append(open_domain_data(domain))
        encoded.append(
            encode_texts(
                found[-1].catalogue.texts,
                federation.features.encoder,
                cache_dir=default_cache_dir(),
                progress=watcher.texts,
                threads=federation.compute.threads,
            )
        )
    settings = federation.features
    moments = [text_moments(texts) for _, texts in sorted(zip(domains, encoded, strict=True), key=_name)]
    whitening = fit_whitening(moments, eps=settings.whitening_eps, dim=settings.dim)
    # 2. Everything in one place, as the ceiling of an evaluation is trained.
    recipe = recipe_of(federation, arrays_digest(whitening.arrays()).hex())
    pool = [
        Pooled(users=make_training_set(data.train, whitening.apply(texts), recipe), data=data)
        for data, texts in zip(found, encoded, strict=True)
    ]
    watcher.stage("training in the open, without noise")
    seed = federation.seed or 0
    trained = train_centralised(
        pool,
        backbone_config=federation.backbone.shape,
        training=federation.training,
        seed=seed,
        train=federation.training.train,
        passes=passes,
    )
    if not trained.passes:
        raise Refused(
            f"in {passes} passes no backbone was above the text prior on the validation items of "
            f"{', '.join(domain.name for domain in domains)}, so none is written: there is nothing to start from"
        )
    # 3. The file says what was public.
    origin = Origin(
        domains=_said(found), training=federation.training, passes=trained.passes, seed=seed, gain=trained.gain
    )
    shipped = ShippedBackbone(backbone=trained.backbone, whitening=whitening, features=settings, round=0, origin=origin)
    save_backbone(out, shipped)
    return origin


def _require_sense(file: Path, *, out: Path, passes: int, started: bool) -> None:
    if passes < 1:
        raise ConfigError(f"--passes must be at least 1, got {passes}")
    if started:
        raise ConfigError(f"{file}: `backbone.start`: pre-training begins with the text prior; leave the key out here")
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ConfigError(f"--out {out}: must be a file in a folder that is there")


def _require_public(domain: DomainConfig) -> None:
    """Both files of a domain must agree that there is nothing to protect."""
    if not domain.interactions.public:
        raise ConfigError(
            f"{domain.folder / 'domain.toml'}: the histories of {domain.name} are not declared public, so nothing is "
            f"trained on them without noise. Only if everybody may know every one of them: `public = true` in "
            f"[interactions]. Otherwise leave the domain out of the federation file."
        )
    try:
        require_allowed(domain)
    except PolicyRefused as refusal:
        raise Refused(
            f"{refusal} Its domain.toml declares its histories public and its policy.toml wants noise; one of them is "
            f"wrong.",
            rule=refusal.rule,
            asked=refusal.asked,
            limit=refusal.limit,
        ) from None


def _said(found: Sequence[DomainData]) -> tuple[PublicDomain, ...]:
    """Who was trained on."""
    return tuple(
        PublicDomain(name=data.config.name, users=len(data.users), fingerprint=data.fingerprint.hex()) for data in found
    )


def _name(pair: tuple[DomainConfig, object]) -> str:
    return pair[0].name
