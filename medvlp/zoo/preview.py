"""What an encoder is and can do, and whether its file is whole, without reading the values of released weights.

Guarantee: a released checkpoint that passes here passes the account of keys when it is loaded; only its values, and
what stands beside the file, can still be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medvlp.models.weights import find_weights, read_shapes
from medvlp.zoo.key_plan import plan_keys, strip_prefixes
from medvlp.zoo.load import full_spec, load
from medvlp.zoo.released import build_released
from medvlp.zoo.released_encoder import named_release


@dataclass(frozen=True)
class Preview:
    """An encoder before it is used.

    Args:
        name: Name in tables.
        has_text: Whether texts can be encoded.
        scores_text: Whether it answers zero-shot.
        shared_space: Whether images and texts have vectors in one space.
        heat_maps: Whether it has heat maps.
        account: What became of the tensors of its file; empty where there is no account.
    """

    name: str
    has_text: bool = False
    scores_text: bool = False
    shared_space: bool = False
    heat_maps: bool = False
    account: str = ""


def preview(spec: str) -> Preview:
    """Return what an encoder is and can do.

    Args:
        spec: As for `medvlp.load_encoder`. Released checkpoints are looked at, all others loaded.

    Raises:
        UserError: It cannot be loaded, or its file is not whole.
    """
    spec = full_spec(spec)
    kind, colon, rest = spec.partition(":")
    if colon and kind == "zoo" and not Path(spec).exists() and "text=" not in rest.partition("?")[2]:
        return _released(rest)
    encoder = load(spec, stored=None, device="cpu", seed=0)
    return Preview(
        encoder.name.partition("#")[0],
        encoder.has_text,
        encoder.scores_text,
        encoder.shared_space,
        encoder.heat_map_kind is not None,
        "every tensor is explained" if kind != "random" else "",
    )


def _released(rest: str) -> Preview:
    release, path, options = named_release(rest)
    file = find_weights(path)
    shapes = read_shapes(file)
    given = {short: shapes[full] for short, full in strip_prefixes(shapes, release).items()}
    model = build_released(release)
    plan = plan_keys({key: value.shape for key, value in model.state_dict().items()}, given, release, file)
    for part in plan.absent:
        model.leave_out(part)
    view = options.get("view", release.default_view)
    has_text = "tokenizer" in options
    return Preview(
        f"zoo:{release.name}" + ("" if view == release.default_view else f"@{view}"),
        has_text,
        has_text and model.scores_text,
        has_text and model.shared_space,
        has_text and model.heat_map_kind is not None,
        ", ".join(f"{count} {fate}" for fate, count in sorted(plan.counts.items()) if count),
    )
