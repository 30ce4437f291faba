"""Data: sources, checks, parsing, repair, twins, splits, and the sample that ships."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finsent.data import splits
from finsent.data.records import LABELS, DataError, Record
from finsent.data.registry import (
    DATASETS,
    Dataset,
    DatasetEntry,
    load_dataset,
    make_split,
    to_datasets,
)
from finsent.data.sets import phrasebank
from finsent.data.sets.phrasebank import (
    FILE_SHA256,
    LEVELS,
    ZIP_NAME,
    merge_duplicates,
    parse_phrasebank,
    read_level,
    repair_mojibake,
)

REAL = os.environ.get("FINSENT_DATA_DIR")
needs_real_data = pytest.mark.skipif(
    not REAL, reason="FINSENT_DATA_DIR does not name a folder with Financial PhraseBank"
)
SEEDS = st.integers(min_value=0, max_value=2**32 - 1)


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINSENT_DATA_DIR", raising=False)


def real(level: str) -> Dataset:
    assert REAL is not None
    return load_dataset(level, Path(REAL))


def entry(records: list[Record], **changes: object) -> dict[str, DatasetEntry]:
    """A registry with one data set in it: all that adding a data set takes."""
    made = DatasetEntry("mine", "Mine", lambda data_dir: records, LABELS, "CC0", "me", "")
    return {"mine": replace(made, **changes)}  # type: ignore[arg-type]


def twin_laden(n_templates: int = 60, seed: int = 0) -> Dataset:
    """Random word salads, most of them in families that differ in figures and one word only.

    A family may carry several labels, as rose/fell twins do.
    """
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(400)]
    records: list[Record] = []
    for template in range(n_templates):
        base = rng.sample(words, 11)
        for _ in range(rng.choice([1, 1, 2, 3, 7])):
            text = " ".join([*base, str(rng.randrange(10**6)), rng.choice(words)])
            label = LABELS[template % 3] if rng.random() < 0.8 else rng.choice(LABELS)
            records.append(Record(f"id-{len(records)}", text, label))
    return load_dataset("mine", registry=entry(records))


def twin_pairs(texts: list[str]) -> set[tuple[int, int]]:
    """Twins by definition, pair by pair, sharing no code with the implementation."""
    bags = [
        {w for w in "".join(c if c.isalpha() else " " for c in text.lower()).split()}
        for text in texts
    ]
    order = sorted(range(len(bags)), key=lambda i: len(bags[i]))
    found = set()
    for position, i in enumerate(order):
        for j in order[position + 1 :]:
            if len(bags[i]) * 5 < len(bags[j]) * 4:  # no later set is small enough either
                break
            shared = len(bags[i] & bags[j])
            if shared >= 5 and 5 * shared >= 4 * (len(bags[i]) + len(bags[j]) - shared):
                found.add((min(i, j), max(i, j)))
    return found


# --- parsing ------------------------------------------------------------------------------------


def test_parse_reads_latin_1_with_any_line_end() -> None:
    content = "Profit rose at Åse & Co@positive\r\nNo change , \x85 said@neutral\nLoss@negative"
    assert parse_phrasebank(content.encode("latin-1"), "f.txt") == [
        ("Profit rose at Åse & Co", "positive"),
        ("No change , \x85 said", "neutral"),
        ("Loss", "negative"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Good news@positive\nBad news@bearish\n", r"line 2: unknown label 'bearish'; expected"),
        (b"Good news@positive\n\nBad news@negative\n", r"line 2: empty line"),
        (b"Good news@positive\nBad news\n", r"line 2: no '@' in 'Bad news'"),
        (b"  @positive\n", r"line 1: empty sentence in '  @positive'"),
        ("\ufeffGood news@positive\n".encode(), r"byte-order mark"),
        ("Good news@positive\n".encode("utf-16"), r"UTF-16"),
        ("Good news@positive\n".encode("utf-16-le"), r"UTF-16"),
        ("Good news in Åbo@positive\n".encode(), r"re-encoded as UTF-8; expected latin-1"),
    ],
)
def test_parse_errors_name_source_line_and_value(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"^folder/f\.txt.*" + message):
        parse_phrasebank(content, "folder/f.txt")


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("K+ñrk+ñl+ñ", "Kärkälä"),
        ("B+Ârje from +àre", "Börje from Åre"),
        ("Sm+Ñby", "Småby"),
        ("+äHT+äRI", "ÄHTÄRI"),
        ("Caf+® Bogot+í", "Café Bogotá"),
        ("Sim+úo", "Simão"),
        ("+£lar", "Ülar"),
        ("M++ller", "Müller"),
        ("-® 2020", "© 2020"),
        ("Brand -« X", "Brand ® X"),
        ("5 -Ál", "5 µl"),
        ("555-á100", "555\u00a0100"),
        ("the firm+óEUR TM s", "the firm\u2019 s"),
        ("loss of +ó  x201a -¼ 3 million", "loss of € 3 million"),
    ],
)
def test_mojibake_is_undone(damaged: str, repaired: str) -> None:
    assert repair_mojibake(damaged) == repaired


@pytest.mark.parametrize(
    "text",
    [
        "call +358 9 555 or 555-1234",
        "A+B Group, Alder + Wren, +1.2 and -3.5 ( +0.6 )",
        "C++ developers, plan B +1",
        "Café Zoë, naïve São Paulo, 20 °C",
        "lost for good: +é 5 , +ó ? and +â rvi",
        "AA++ rated",
    ],
)
def test_repair_leaves_everything_else_alone(text: str) -> None:
    assert repair_mojibake(text) == text


def test_a_mangled_name_gives_the_same_id_as_the_name_itself() -> None:
    ids = {
        merge_duplicates([(phrasebank.clean(t), "neutral")], stricter=list)[0].id
        for t in ("Oy K+ñrki  grew .", "Oy Kärki grew . ")
    }
    assert len(ids) == 1
    digest = hashlib.sha256("Oy Kärki grew .".encode()).hexdigest()
    assert ids == {"fpb-" + digest[:12]}


def test_exact_duplicates_are_merged_in_order_of_first_occurrence() -> None:
    rows = [("b", "positive"), ("a", "neutral"), ("b", "positive")]
    merged = merge_duplicates(rows, stricter=list)
    assert [(r.text, r.label) for r in merged] == [("b", "positive"), ("a", "neutral")]


def test_conflicting_copies_take_the_label_more_annotators_agreed_on() -> None:
    rows = [("a", "neutral"), ("a", "positive"), ("b", "negative"), ("b", "positive")]
    strictest = [("other", "negative")]
    middle = [("a", "positive"), ("b", "negative"), ("b", "positive")]
    merged = merge_duplicates(rows, stricter=lambda: [strictest, middle])
    # "a" is settled by the middle level; "b" is contradictory there too, hence neutral
    assert [(r.text, r.label) for r in merged] == [("a", "positive"), ("b", "neutral")]
    assert merge_duplicates(rows[::-1], stricter=lambda: [strictest, middle])[1].label == "positive"


# --- sources ------------------------------------------------------------------------------------

FILES = {
    "Sentences_AllAgree.txt": b"Orders grew@positive\r\nThe fair is in M\xe4rz@neutral\r\n",
    "Sentences_75Agree.txt": b"Orders grew@positive\r\nThe fair is in M\xe4rz@neutral\r\n"
    b"Sales fell@negative\r\n",
    "Sentences_66Agree.txt": b"Sales fell@negative\r\n",
    "Sentences_50Agree.txt": b"Orders grew@neutral\r\nSales fell@negative\r\n"
    b"Orders  grew@positive\r\n",
}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that FILES are what was published."""
    for name, content in FILES.items():
        monkeypatch.setitem(FILE_SHA256, name, hashlib.sha256(content).hexdigest())


def write_files(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def write_zip(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / ZIP_NAME, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"FinancialPhraseBank-v1.0/{name}", content)
            archive.writestr(f"__MACOSX/FinancialPhraseBank-v1.0/._{name}", b"shadow")
    return folder / ZIP_NAME


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("below", [".", "financial_phrasebank", "FinancialPhraseBank-v1.0"])
@pytest.mark.parametrize("write", [write_files, write_zip])
def test_every_layout_gives_the_same_data(tmp_path: Path, below: str, write: object) -> None:
    assert callable(write)
    written = write(tmp_path / below)
    expected = [("Orders grew", 2), ("The fair is in März", 1)]
    for place in {tmp_path, written}:
        dataset = load_dataset("allagree", place)
        assert [(e.text, e.label) for e in dataset.examples] == expected
    assert len({e.group for e in dataset.examples}) == 2


@pytest.mark.usefixtures("published")
def test_the_conflict_rule_reads_the_stricter_levels(tmp_path: Path) -> None:
    dataset = load_dataset("50agree", write_files(tmp_path))
    labels = {e.text: LABELS[e.label] for e in dataset.examples}
    assert labels == {"Orders grew": "positive", "Sales fell": "negative"}


@pytest.mark.usefixtures("published")
def test_the_environment_names_the_folder_and_the_argument_beats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINSENT_DATA_DIR", str(write_files(tmp_path / "env")))
    assert read_level("allagree")[1].startswith(str(tmp_path / "env"))
    argument = write_files(tmp_path / "argument")
    assert read_level("allagree", argument)[1].startswith(str(argument))


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path) / "Sentences_AllAgree.txt"
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError) as caught:
        load_dataset("allagree", tmp_path)
    message = str(caught.value)
    for part in (str(path), got, FILE_SHA256[path.name], "download"):
        assert part in message


def test_a_folder_that_does_not_exist_is_an_error_not_a_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; point FINSENT_DATA_DIR"):
        read_level("allagree", tmp_path / "nowhere")


def test_a_folder_without_the_file_is_an_error_not_a_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Sentences_75Agree\.txt and no .*zip in .*download"):
        read_level("75agree", tmp_path)


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / ZIP_NAME).write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"v1\.0\.zip is not a readable zip .*download"):
        read_level("allagree", tmp_path)


def test_a_zip_without_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"other\.zip holds 0 files named Sentences_AllAgree\.txt"):
        read_level("allagree", path)


@pytest.mark.usefixtures("published")
def test_without_a_folder_the_canonical_zip_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path)
    asked = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(phrasebank, "ZIP_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(load_dataset("allagree").examples) == 2
    assert asked == [
        ("takala/financial_phrasebank", "data/FinancialPhraseBank-v1.0.zip", "dataset")
    ]
    monkeypatch.setattr(phrasebank, "ZIP_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"zip is not the published file: .*expected 0{64}"):
        load_dataset("allagree")


def test_an_unreachable_hub_says_what_to_do_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DataError) as caught:
        load_dataset("allagree")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "ConnectionError: no route to host",
        "FINSENT_DATA_DIR",
        "--data-dir",
        "--dataset sample",
        "https://huggingface.co/datasets/takala/financial_phrasebank",
    ):
        assert part in message


# --- registry -----------------------------------------------------------------------------------


def test_the_registry_describes_every_data_set() -> None:
    sentiment = ["allagree", "75agree", "66agree", "50agree", "fiqa", "twitter", "sample"]
    assert set(DATASETS) == {*sentiment, "fomc", "numclaim"}
    marks: dict[str, str] = {}
    for name, known in DATASETS.items():
        assert known.name == name
        assert (known.label_names == LABELS) == (name in sentiment)
        for text in ("title", "short_title", "licence", "citation", "files", "rules", "cue"):
            assert getattr(known, text), f"{name} has no {text}"
        assert known.ships or known.url.startswith("https://")
        assert len(set(known.label_marks)) == len(known.label_names)
        for label, mark in zip(known.label_names, known.label_marks, strict=True):
            assert marks.setdefault(label, mark) == mark, f"{label} has two marks"
    assert DATASETS["allagree"].licence == "CC BY-NC-SA 3.0"
    assert DATASETS["fomc"].label_names == ("dovish", "neutral", "hawkish")
    assert DATASETS["numclaim"].label_names == ("out-of-claim", "in-claim")


def test_a_new_data_set_is_one_entry() -> None:
    records = [Record("1", "Rates will rise", "hawkish"), Record("2", "Rates fall", "dovish")]
    registry = entry(records, label_names=("dovish", "hawkish"))
    dataset = load_dataset("mine", registry=registry)
    assert dataset.label_names == ("dovish", "hawkish")
    assert [e.label for e in dataset.examples] == [1, 0]
    lines = b"1\thawkish\n2\tdovish\n"
    assert dataset.fingerprint == hashlib.sha256(lines).hexdigest()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown data set 'phrasebank'; choose one of allagree"):
        load_dataset("phrasebank")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], r"'mine' is empty"),
        ([Record("1", "Up", "bullish")], r"'mine', 1: unknown label 'bullish'; expected one of"),
        ([Record("1", " ", "neutral")], r"'mine', 1: the text is empty"),
        ([Record("1", "Up", "positive"), Record("1", "Down", "negative")], r"'1' occurs twice"),
    ],
)
def test_unusable_records_are_refused(records: list[Record], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset("mine", registry=entry(records))


# --- twins --------------------------------------------------------------------------------------


def test_twins_differ_in_figures_case_and_punctuation_only() -> None:
    groups = splits.twin_groups(
        [
            "Net sales of Ansa rose to EUR 5.2 mn in 2019 .",
            "A wholly different sentence about harbour cranes and barges",
            "net sales of Ansa rose, to EUR 78 mn (in 2021)",
        ]
    )
    assert groups.tolist() == [0, 1, 0]


def test_exactly_four_fifths_is_a_twin_and_less_is_not() -> None:
    eight = "ash birch cedar elm fir hazel oak pine"
    assert len(set(splits.twin_groups([eight + " rowan", eight + " yew"]))) == 1  # 8 of 10
    seven = eight.removesuffix(" pine")
    assert len(set(splits.twin_groups([seven + " rowan", seven + " yew"]))) == 2  # 7 of 9


def test_short_sentences_are_not_twins() -> None:
    four, five = "sales rose in June", "sales rose again in June"
    assert len(set(splits.twin_groups([four, four + " 2"]))) == 2
    assert len(set(splits.twin_groups([five, five + " 2"]))) == 1


def test_a_twin_of_a_twin_is_in_the_group() -> None:
    words = [f"word{chr(97 + i)}" for i in range(14)]
    chain = [" ".join(words[start : start + 10]) for start in range(5)]
    assert len(twin_pairs([chain[0], chain[4]])) == 0
    assert set(splits.twin_groups(chain)) == {0}


def test_texts_without_words_stand_alone() -> None:
    assert splits.twin_groups(["12 %", "3.4", "12 %"]).tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9).map(" ".join), min_size=1
    ),
    chunk=st.integers(1, 7),
)
def test_groups_are_the_components_of_the_brute_force_pairs(texts: list[str], chunk: int) -> None:
    expected = list(range(len(texts)))
    pairs = twin_pairs(texts)
    for _ in texts:  # spread the smallest number along the links until nothing moves
        for i, j in pairs:
            expected[i] = expected[j] = min(expected[i], expected[j])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "CHUNK", chunk)
        groups = splits.twin_groups(texts).tolist()
    first = {group: groups.index(group) for group in groups}
    assert [first[group] for group in groups] == expected
    assert list(dict.fromkeys(groups)) == list(range(len(set(groups))))


# --- splits -------------------------------------------------------------------------------------


def assert_no_twin_straddles(dataset: Dataset, pairs: set[tuple[int, int]], seed: int) -> None:
    split = make_split(dataset, seed)
    parts = (split.train, split.validation, split.test)
    side = {index: part for part, indices in enumerate(parts) for index in indices}
    assert sorted(itertools.chain(*parts)) == list(range(len(dataset.examples)))
    assert [pair for pair in pairs if side[pair[0]] != side[pair[1]]] == []


TWIN_LADEN = twin_laden()
TWIN_LADEN_PAIRS = twin_pairs([e.text for e in TWIN_LADEN.examples])


def test_the_synthetic_data_is_hard_enough() -> None:
    assert len(TWIN_LADEN_PAIRS) > 100
    disagreeing = [
        (i, j)
        for i, j in TWIN_LADEN_PAIRS
        if TWIN_LADEN.examples[i].label != TWIN_LADEN.examples[j].label
    ]
    assert len(disagreeing) > 10


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_no_twin_pair_straddles_a_split_of_synthetic_data(seed: int) -> None:
    assert_no_twin_straddles(TWIN_LADEN, TWIN_LADEN_PAIRS, seed)


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_no_twin_pair_straddles_a_split_of_the_sample(seed: int) -> None:
    dataset = load_dataset("sample")
    assert_no_twin_straddles(dataset, twin_pairs([e.text for e in dataset.examples]), seed)


@needs_real_data
@pytest.mark.parametrize(("level", "examples"), [("allagree", 4), ("50agree", 2)])
def test_no_twin_pair_straddles_a_split_of_phrasebank(level: str, examples: int) -> None:
    dataset = real(level)
    pairs = twin_pairs([e.text for e in dataset.examples])
    assert len(pairs) > 200

    @settings(deadline=None, max_examples=examples)
    @given(seed=SEEDS)
    def holds(seed: int) -> None:
        assert_no_twin_straddles(dataset, pairs, seed)

    holds()


def assert_balanced(dataset: Dataset, seed: int, tolerance: float) -> None:
    split = make_split(dataset, seed)
    labels = np.array([e.label for e in dataset.examples])
    shares = np.bincount(labels, minlength=3) / len(labels)
    for part, share in ((split.train, 0.70), (split.validation, 0.15), (split.test, 0.15)):
        assert list(part) == sorted(part)
        assert abs(len(part) / len(labels) - share) < 0.01
        part_shares = np.bincount(labels[list(part)], minlength=3) / len(part)
        assert np.abs(part_shares - shares).max() < tolerance


@pytest.mark.parametrize("seed", range(3))
def test_parts_are_70_15_15_and_keep_the_class_shares(seed: int) -> None:
    # a small part holds 42 sentences: three of them are 0.07
    assert_balanced(load_dataset("sample"), seed, tolerance=0.075)


@needs_real_data
@pytest.mark.parametrize("level", ["allagree", "50agree"])
def test_parts_of_phrasebank_are_balanced(level: str) -> None:
    assert_balanced(real(level), seed=0, tolerance=0.006)


def test_a_split_is_determined_by_its_seed() -> None:
    dataset = load_dataset("sample")
    assert make_split(dataset, 1) == make_split(load_dataset("sample"), 1)
    assert make_split(dataset, 1).fingerprint != make_split(dataset, 2).fingerprint
    assert set(make_split(dataset, 1).test) != set(make_split(dataset, 2).test)


def test_the_fingerprint_is_over_the_ordered_ids_of_the_parts() -> None:
    dataset = load_dataset("sample")
    split = make_split(dataset, 0)
    lines = "".join(
        f"{part}\t{dataset.examples[i].id}\n"
        for part in ("train", "validation", "test")
        for i in getattr(split, part)
    )
    assert split.fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def distinct_words(n: int) -> list[str]:
    return ["".join(letters) for letters in itertools.islice(itertools.permutations("abcdef"), n)]


def test_a_class_that_is_too_small_cannot_be_split() -> None:
    labels = ["positive"] * 30 + ["neutral"] * 30 + ["negative"] * 19
    records = [
        Record(str(i), word, label)
        for i, (word, label) in enumerate(zip(distinct_words(79), labels, strict=True))
    ]
    dataset = load_dataset("mine", registry=entry(records))
    with pytest.raises(DataError, match=r"19 examples of class 'negative'.* at least 20"):
        make_split(dataset, 0)


def test_a_class_of_nothing_but_twins_cannot_be_split() -> None:
    records = [Record(f"n{i}", f"the mill will close in {i} days", "negative") for i in range(25)]
    for i, word in enumerate(distinct_words(60)):
        records.append(Record(f"o{i}", word, ("positive", "neutral")[i % 2]))
    dataset = load_dataset("mine", registry=entry(records))
    with pytest.raises(DataError, match=r"part got no example of class 'negative'.*too few groups"):
        make_split(dataset, 0)


# --- the sample ---------------------------------------------------------------------------------


def test_the_sample_is_varied() -> None:
    dataset = load_dataset("sample")
    texts = [e.text for e in dataset.examples]
    counts = Counter(LABELS[e.label] for e in dataset.examples)
    assert len(texts) >= 260
    assert min(counts.values()) >= 80
    assert [e.id for e in dataset.examples] == [
        f"sample-{number:03d}" for number in range(1, len(texts) + 1)
    ]
    assert twin_pairs(texts) == set()
    words = [re.findall(r"[^\W_]+", text.lower()) for text in texts]
    assert all(5 <= len(sentence) <= 50 for sentence in words)
    openings = Counter(tuple(sentence[:4]) for sentence in words)
    assert max(openings.values()) == 1
    five_grams = Counter(
        gram
        for sentence in words
        for gram in {tuple(sentence[i : i + 5]) for i in range(len(sentence) - 4)}
    )
    assert max(five_grams.values()) == 1


def test_the_sample_needs_no_data_folder(tmp_path: Path) -> None:
    assert load_dataset("sample", tmp_path / "nowhere") == load_dataset("sample")


@needs_real_data
def test_the_sample_takes_no_sentence_from_phrasebank() -> None:
    def bag(text: str) -> set[str]:
        return set(re.findall(r"[^\W\d_]+", text.lower()))

    theirs = [bag(e.text) for e in real("50agree").examples]
    for example in load_dataset("sample").examples:
        own = bag(example.text)
        assert max(len(own & other) / len(own | other) for other in theirs) < 0.5


# --- the real files -----------------------------------------------------------------------------


@needs_real_data
@pytest.mark.parametrize(
    ("level", "negative", "neutral", "positive", "in_twin_groups"),
    [
        ("allagree", 303, 1386, 570, 177),
        ("75agree", 420, 2141, 887, 247),
        ("66agree", 514, 2529, 1168, 280),
        ("50agree", 604, 2871, 1363, 317),
    ],
)
def test_counts_after_merging(
    level: str, negative: int, neutral: int, positive: int, in_twin_groups: int
) -> None:
    dataset = real(level)
    counts = np.bincount([e.label for e in dataset.examples])
    assert counts.tolist() == [negative, neutral, positive]
    sizes = np.bincount([e.group for e in dataset.examples])
    assert sizes[sizes > 1].sum() == in_twin_groups


@needs_real_data
@pytest.mark.parametrize(
    ("level", "rows", "linked"), [("allagree", 2264, 187), ("50agree", 4846, 333)]
)
def test_linked_rows_before_merging(level: str, rows: int, linked: int) -> None:
    assert REAL is not None
    texts = [text for text, _ in parse_phrasebank(*read_level(level, Path(REAL)))]
    assert len(texts) == rows
    sizes = np.bincount(splits.twin_groups(texts))
    assert sizes[sizes > 1].sum() == linked


@needs_real_data
def test_levels_nest_with_the_same_ids_and_labels() -> None:
    outer: dict[str, int] = {}
    for level in reversed(LEVELS):
        inner = {e.id: e.label for e in real(level).examples}
        if outer:
            assert inner.items() <= outer.items()
        outer = inner


@needs_real_data
def test_only_the_known_remains_of_mojibake_are_left() -> None:
    assert REAL is not None
    rows = parse_phrasebank(*read_level("50agree", Path(REAL)))
    assert sum(repair_mojibake(text) != text for text, _ in rows) == 109
    left = [e for e in real("50agree").examples if re.search(r"[+-][^\x00-\x7f]|\+\+", e.text)]
    assert len(left) == 4


def test_the_split_goes_into_the_hugging_face_container_unchanged() -> None:
    dataset = load_dataset("sample")
    split = make_split(dataset, 0)
    tables = to_datasets(dataset, split)
    assert list(tables) == ["train", "validation", "test"]
    assert tables["test"]["id"][:] == [dataset.examples[i].id for i in split.test]
    assert tables["test"].features["label"].names == list(LABELS)
    assert sum(table.num_rows for table in tables.values()) == len(dataset.examples)
