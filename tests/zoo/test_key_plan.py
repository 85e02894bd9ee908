"""The account of a file's names: joins, parts, zeros, alternatives, optional parts; every mistake is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medvlp.errors import UserError
from medvlp.zoo.key_plan import KeyPlan, expand_braces, plan_keys, strip_prefixes
from medvlp.zoo.release import Release

PLAIN = {
    "name": "tiny",
    "title": "Tiny",
    "paper": "none",
    "source": "nowhere",
    "file": "tiny.pt.",
    "container": "none",
    "image": {"family": "resnet", "name": "resnet18", "views": {"official": {"because": "all"}}},
    "keys": [{"ours": "", "file": [""]}],
    "stored": {},
    "input": {},
}


def release(**changes: Any) -> Release:
    return Release.model_validate({**PLAIN, **changes})


def plan(own: dict[str, tuple[int, ...]], given: dict[str, torch.Tensor], **changes: Any) -> KeyPlan:
    shapes = {name: torch.Size(shape) for name, shape in own.items()}
    return plan_keys(shapes, {name: value.shape for name, value in given.items()}, release(**changes), "FILE")


def test_braces_stand_for_each_choice_once():
    assert expand_braces("a") == ["a"]
    assert expand_braces("{x,y}.{8..10}") == ["x.8", "x.9", "x.10", "y.8", "y.9", "y.10"]
    assert sorted(expand_braces("l.{s.{q,k},o.{d,n}}.w")) == ["l.o.d.w", "l.o.n.w", "l.s.k.w", "l.s.q.w"]


def test_prefixes_are_taken_off_only_if_every_name_has_them():
    config = release(strip=["module.", "net."])
    assert strip_prefixes(["module.net.a", "module.net.b"], config) == {"a": "module.net.a", "b": "module.net.b"}
    assert strip_prefixes(["module.net.a", "module.b"], config) == {"net.a": "module.net.a", "b": "module.b"}
    assert strip_prefixes(["a", "module.b"], config) == {"a": "a", "module.b": "module.b"}


def test_three_tensors_become_one_in_the_order_of_the_rule():
    given = {f"old.{name}.w": torch.full((2, 3), number) for number, name in enumerate("qkv")}
    names = [{"ours": r"qkv\.(.+)", "join": [r"q.\1", r"k.\1", r"v.\1"]}]
    made = plan({"new.qkv.w": (6, 3)}, given, keys=[{"ours": "new.", "file": ["old."], "names": names}])
    tensor = made.sources["new.qkv.w"].tensor(given)
    assert tensor[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert made.counts == {"joined": 3}


def test_one_tensor_becomes_three():
    given = {"in_proj": torch.arange(6.0)[:, None].expand(6, 3)}
    names = [{"ours": f"{part}", "file": "in_proj", "part": [number, 3]} for number, part in enumerate("qkv")]
    made = plan(dict.fromkeys("qkv", (2, 3)), given, keys=[{"ours": "", "file": [""], "names": names}])
    assert [made.sources[part].tensor(given)[:, 0].tolist() for part in "qkv"] == [[0, 1], [2, 3], [4, 5]]
    assert made.counts == {"split": 1}


def test_zeros_are_named_with_their_reason():
    keys = [{"ours": "", "file": [""], "names": [{"ours": "b", "zeros": "there never was one"}]}]
    made = plan({"a": (2,), "b": (3,)}, {"a": torch.ones(2)}, keys=keys)
    assert made.sources["b"].keys == ()
    assert [line.detail for line in made.lines if line.fate == "zeros"] == ["b: there never was one"]


def test_axes_of_length_one_may_differ_and_others_not():
    made = plan({"a": (4, 3)}, {"a": torch.ones(4, 3, 1, 1)})
    assert made.sources["a"].keys == ("a",)
    assert made.lines[0].detail.endswith("; 1 with axes laid out otherwise")
    for shape in ((3, 4), (4, 3, 2), (12,)):
        with pytest.raises(UserError, match=r"of another shape \(1\): a "):
            plan({"a": (4, 3)}, {"a": torch.ones(shape)})


def test_of_several_beginnings_the_one_that_finds_most_is_meant():
    keys = [{"ours": "net.", "file": ["visual.net.", "net."]}]
    own = {"net.a": (1,), "net.b": (1,)}
    for beginning in ("visual.net.", "net."):
        given = {f"{beginning}{name}": torch.ones(1) for name in "ab"}
        assert plan(own, given, keys=keys).counts == {"used": 2}
        del given[f"{beginning}b"]
        with pytest.raises(UserError, match=rf"missing \(1\): {beginning}b\."):
            plan(own, given, keys=keys)


def test_an_optional_part_is_there_as_a_whole_or_not_at_all():
    keys = [{"ours": "image.", "file": ["i."]}, {"ours": "text.", "file": ["t."], "optional": True}]
    own = {"image.a": (1,), "text.a": (1,), "text.b": (1,)}
    whole = {name: torch.ones(1) for name in ("i.a", "t.a", "t.b")}
    assert not plan(own, whole, keys=keys).absent
    alone = plan(own, {"i.a": torch.ones(1)}, keys=keys)
    assert alone.absent == ["text."]
    assert alone.sources.keys() == {"image.a"}
    with pytest.raises(UserError, match=r"missing \(1\): t\.b"):
        plan(own, {name: whole[name] for name in ("i.a", "t.a")}, keys=keys)


def test_what_is_ignored_must_be_there_and_nothing_else():
    ignored = [{"because": "a head", "keys": ["head.{w,b}"]}]
    given = {"a": torch.ones(1), "head.w": torch.ones(2), "head.b": torch.ones(1)}
    made = plan({"a": (1,)}, given, ignored=ignored)
    assert made.ignored == {"head.w": "a head", "head.b": "a head"}
    for wrong, message in (
        ({**given, "head.c": torch.ones(1)}, r"unexplained \(1\): head\.c"),
        ({"a": given["a"], "head.w": given["head.w"]}, r"missing \(1\): head\.b"),
        ({"a": given["a"]}, r"missing \(2\): head\.b, head\.w"),
    ):
        with pytest.raises(UserError, match=message):
            plan({"a": (1,)}, wrong, ignored=ignored)
    optional = [{**ignored[0], "optional": True}]
    assert plan({"a": (1,)}, {"a": torch.ones(1)}, ignored=optional).ignored == {}
    with pytest.raises(UserError, match=r"missing \(1\): head\.b"):
        plan({"a": (1,)}, {"a": torch.ones(1), "head.w": torch.ones(2)}, ignored=optional)


def test_a_pattern_never_swallows_what_is_used():
    ignored = [{"because": "unknown decoders", "pattern": ".+", "optional": True}]
    given = {"a": torch.ones(1), "x.y": torch.ones(2)}
    made = plan({"a": (1,)}, given, ignored=ignored)
    assert made.ignored == {"x.y": "unknown decoders"}
    assert made.sources["a"].keys == ("a",)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as error:
        plan({"a": (1,), "b": (2,), "c": (1,)}, {"a": torch.ones(1), "b": torch.ones(3), "d": torch.ones(1)})
    for part in ("missing (1): c", "unexplained (1): d", "of another shape (1): b [3] instead of [2]", "'tiny'"):
        assert part in error.value.what
    assert error.value.where == "FILE"


def test_rules_that_leave_a_tensor_of_ours_out_are_refused():
    with pytest.raises(UserError, match=r"do not say where the model's b\.c come from"):
        plan({"a": (1,), "b.c": (1,)}, {"a": torch.ones(1)}, keys=[{"ours": "a", "file": ["a"]}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": [{"ours": "", "file": [""], "names": [{"ours": "a"}]}]}, "one of file, join and zeros"),
        ({"keys": [{"ours": "", "file": [""], "names": [{"ours": "a", "file": "b", "part": [2, 2]}]}]}, "i from 0"),
        ({"ignored": [{"because": "none"}]}, "give keys, or a pattern"),
        ({"projects": "natve"}, "projects names no view"),
        ({"image": {"family": "resnet", "name": "resnet18", "views": {}}}, "views is empty"),
        ({"text": {"pool": "words"}}, "slots belong together"),
    ],
)
def test_a_format_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        release(**changes)
