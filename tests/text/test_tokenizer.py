"""The tokenizer: determinism across processes, save and load, Hugging Face folders, shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.text.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = [
    "No pleural effusion or pneumothorax.",
    "The heart is normal in size. Lungs are clear.",
    "Small left pleural effusion with adjacent atelectasis.",
    "Stable cardiomegaly without pulmonary edema.",
    "Opacity in the left base may represent atelectasis or pneumonia.",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 200)


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokens(range(5)) == list(SPECIAL_TOKENS)
    assert (tokenizer.pad_id, tokenizer.mask_id) == (0, 4)
    assert tokenizer.vocab_size <= 200


def test_encode_pads_to_the_longest(tokenizer: Tokenizer) -> None:
    ids, mask, word_ids = tokenizer.encode(["No pleural effusion.", "Cardiomegaly"], 32)
    assert ids.shape == mask.shape == word_ids.shape
    assert (ids.dtype, mask.dtype, word_ids.dtype) == (np.int64, np.bool_, np.int64)
    assert (ids[~mask] == tokenizer.pad_id).all()
    assert (word_ids[~mask] == -1).all()
    for row in range(2):
        real = ids[row][mask[row]]
        assert tokenizer.tokens([real[0], real[-1]]) == ["[CLS]", "[SEP]"]
    assert sorted(set(word_ids[0]) - {-1}) == [0, 1, 2, 3]  # three words and the full stop
    assert tokenizer.decode(ids[0]) == "no pleural effusion."


def test_word_ids_group_the_pieces_of_a_word() -> None:
    tokenizer = Tokenizer.train(TEXTS, 64)  # hardly more than characters, so that words fall into pieces
    ids, _, word_ids = tokenizer.encode(["left effusion"], 64)
    words: dict[int, str] = {}
    for token, word in zip(tokenizer.tokens(ids[0]), word_ids[0], strict=True):
        if word >= 0:
            words[word] = words.get(word, "") + token.removeprefix("##")
    assert words == {0: "left", 1: "effusion"}


def test_encode_cuts_and_takes_nothing(tokenizer: Tokenizer) -> None:
    ids, mask, _ = tokenizer.encode([" ".join(TEXTS)], 10)
    assert ids.shape == (1, 10)
    assert mask.all()
    assert tokenizer.tokens(ids[0])[-1] == "[SEP]"
    assert tokenizer.encode([], 10)[0].shape == (0, 0)
    with pytest.raises(UserError, match="no room"):
        tokenizer.encode(["x"], 2)


def test_unknown_characters_do_not_fail(tokenizer: Tokenizer) -> None:
    ids, _, _ = tokenizer.encode(["肺炎"], 10)
    assert "[UNK]" in tokenizer.tokens(ids[0])


def test_save_and_load_change_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded.hash == tokenizer.hash
    for a, b in zip(loaded.encode(TEXTS, 16), tokenizer.encode(TEXTS, 16), strict=True):
        np.testing.assert_array_equal(a, b)


def test_hash_tells_tokenizers_apart_and_encoding_leaves_it(tokenizer: Tokenizer) -> None:
    before = tokenizer.hash
    tokenizer.encode(TEXTS, 8)
    assert tokenizer.hash == before
    assert Tokenizer.train(TEXTS, 120).hash != before


def test_training_is_deterministic_across_processes_and_order(tmp_path: Path) -> None:
    texts = [f"{a}{b}{c} {c}{a}" for a in "abcdef" for b in "ghijk" for c in "lmno"]  # many ties between pairs
    code = (
        "import json, sys; from medvlp.text.tokenizer import Tokenizer; "
        "print(Tokenizer.train(json.load(open(sys.argv[1])), 80).hash)"
    )
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(texts))
    outside = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert {Tokenizer.train(texts, 80).hash, Tokenizer.train(texts[::-1], 80).hash} == {outside.stdout.strip()}


def test_transformers_reads_what_save_wrote(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    ids, mask, _ = tokenizer.encode(TEXTS[:2], 32)
    encoded = theirs(TEXTS[:2], padding=True)
    np.testing.assert_array_equal(ids, encoded["input_ids"])
    np.testing.assert_array_equal(mask, np.asarray(encoded["attention_mask"], dtype=bool))


def test_hugging_face_folder_with_only_a_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "no", "effusion", "."]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    loaded = Tokenizer.from_folder(tmp_path)
    ids, _, _ = loaded.encode(["No effusion."], 8)
    assert loaded.tokens(ids[0]) == ["[CLS]", "no", "effusion", ".", "[SEP]"]


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer folder"):
        Tokenizer.from_folder(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(UserError, match="no text"):
        Tokenizer.train([], 100)
    with pytest.raises(UserError, match="too small"):
        Tokenizer.train(TEXTS, 10)


def test_token_spans_follow_the_characters_and_count_the_class_token() -> None:
    texts = ["Small left pleural effusion, unchanged.", "Pneumothorax of the right lung."] * 3
    tokenizer = Tokenizer.train(texts, 200)
    text = "  Small LEFT  pleural effusion, zyx"
    ids, _, _ = tokenizer.encode([text], 64)
    spans = [(text.index("LEFT"), text.index("LEFT") + 4), (text.index("pleural"), text.index(",")), (0, 2)]
    found = tokenizer.token_spans(text, spans, 64)
    tokens = tokenizer.tokens(ids[0].tolist())
    assert found[2] is None
    for span, place in zip(spans[:2], found[:2], strict=True):
        assert place is not None
        joined = "".join(token.removeprefix("##") for token in tokens[place[0] : place[1]])
        assert joined == text[span[0] : span[1]].lower().replace(" ", "")


def test_a_span_that_the_length_cuts_is_left_out() -> None:
    tokenizer = Tokenizer.train(["left pleural effusion"] * 3, 200)
    text = "left pleural effusion"
    whole = tokenizer.token_spans(text, [(0, 4), (5, 21)], 64)
    assert whole[0] is not None
    assert whole[1] is not None
    short = tokenizer.token_spans(text, [(0, 4), (5, 21)], whole[1][1])  # one token less than the text has
    assert short == [whole[0], None]


def test_threads_that_cut_at_other_lengths_do_not_disturb_each_other() -> None:
    tokenizer = Tokenizer.train(["the left lung is clear and the heart is normal"], 200)
    texts = ["the left lung is clear and the heart is normal " * 20] * 8

    def lengths(limit: int) -> set[int]:
        calls = (lambda: tokenizer.encode(texts, limit)[0], lambda: tokenizer.sentence_ids(texts, limit))
        return {call().shape[1] for _ in range(40) for call in calls}

    limits = [8, 64, 24, 100]
    with ThreadPoolExecutor(len(limits)) as pool:
        assert list(pool.map(lengths, limits)) == [{limit} for limit in limits]
