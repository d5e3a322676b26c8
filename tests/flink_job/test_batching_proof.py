"""The verdict of a model's trial, and answers in company that equal those alone."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository import batching_proof
from anabranch.operators.core.outputs import Shard
from anabranch.schemas.model import BatchingVerdict, ModelSpec
from anabranch.schemas.records import ShardRecord
from anabranch.schemas.signatures import decode_signature
from anabranch.schemas.tensors import Array
from tests.company import KINDS, Company, Kind, alone, read, write_kind


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_trial_of_each_kind_gives_its_verdict(tmp_path: Path, kind: Kind) -> None:
    write_kind(tmp_path, kind)
    verdict = read(tmp_path).find("m", "").verdict
    assert verdict.level == kind.level, verdict


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_answers_in_company_equal_those_alone(tmp_path: Path, kind: Kind) -> None:
    write_kind(tmp_path, kind)
    served = read(tmp_path)
    rng = np.random.default_rng(5)
    feeds = [kind.feed(rng, rows * kind.rows) for rows in (1, 2, 1, 3, 45, 64, 1, 8)]
    answers = Company(served).answer("m", feeds)
    for feed, answer in zip(feeds, answers, strict=True):
        assert not isinstance(answer, str), answer
        if kind.is_random:
            continue
        for name, expected in alone(served.find("m", ""), feed).items():
            assert answer[name].shape == expected.shape
            if expected.dtype.kind in "fc":
                np.testing.assert_allclose(answer[name], expected, rtol=2e-3, atol=1e-5)
            else:
                texts = [item.decode() if isinstance(item, bytes) else item for item in answer[name].ravel().tolist()]
                assert texts == expected.ravel().tolist()


def verdict_of(folder: Path) -> BatchingVerdict:
    return read(folder).find("m", "").verdict


def test_company_of_strangers_shares_batches(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["dense"])
    company = Company(read(tmp_path))
    company.answer("m", [KINDS["dense"].feed(np.random.default_rng(1), 1) for _ in range(20)])
    assert company.batches == [20]


def test_company_rows_of_one_request_stay_together(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["running sum"])
    company = Company(read(tmp_path))
    company.answer("m", [KINDS["running sum"].feed(np.random.default_rng(1), rows) for rows in (3, 100, 1)])
    assert company.batches == [3, 100, 1]


def test_company_failing_request_is_not_halved(tmp_path: Path) -> None:
    text = (
        "(float[N,1] x, int64[N] i) => (float[N,1] y) <int64 zero = {0}, float[4] t = {0,0,0,0}, int64[1] o = {1}> "
        "{ s = CumSum (x, zero) f = Gather (t, i) g = Unsqueeze (f, o) y = Add (s, g) }"
    )
    write_kind(tmp_path, Kind(text, "within request"))
    good = {"x": np.ones((4, 1), "f4"), "i": np.zeros(4, "i8")}
    company = Company(read(tmp_path))
    failed, answered = company.answer("m", [good | {"i": np.array([0, 0, 0, 9])}, good])
    assert isinstance(failed, str)
    assert company.batches == [4, 4]
    assert not isinstance(answered, str)
    assert answered["y"].ravel().tolist() == [1, 2, 3, 4]


def test_verdict_is_cached_by_model_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = []

    def count(model: ModelSpec, sample: Path | None) -> BatchingVerdict:
        trials.append(model)
        return tried(model, sample)

    tried = batching_proof._tried
    monkeypatch.setattr(batching_proof, "_tried", count)
    write_kind(tmp_path, KINDS["dense"])
    first = verdict_of(tmp_path)
    assert (verdict_of(tmp_path), len(trials)) == (first, 1)
    (tmp_path / "m" / "model.toml").write_text("[batching]\ntolerance = 0.5\n")
    verdict_of(tmp_path)
    assert len(trials) == 2
    np.savez(tmp_path / "m" / "1" / "sample.npz", x=np.ones((2, 4), "f4"))
    verdict_of(tmp_path)
    assert len(trials) == 3


def test_verdict_without_cache_folder_is_found_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_kind(tmp_path, KINDS["dense"])
    assert verdict_of(tmp_path).level == "strangers"


def test_verdict_names_reason_and_deviation(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["dynamic quantisation"])
    verdict = verdict_of(tmp_path)
    assert verdict.reason.startswith("rows affect each other in a batch of ")
    assert verdict.deviation is not None
    assert verdict.deviation > 0.1
    trusted = tmp_path / "m" / "model.toml"
    trusted.write_text("[batching]\ntrust = true\n")
    assert verdict_of(tmp_path).reason == "not tried: trust = true under [batching]"


def test_verdict_tolerance_lets_strangers_meet(tmp_path: Path) -> None:
    kind = KINDS["static quantisation"]
    text = kind.text.replace("y = Deq", "d = Deq").replace(
        "z) }", "z) m = ReduceMax <keepdims = 0> (x) n = Tanh (m) e = Mul (n, small) y = Add (d, e) }"
    )
    write_kind(tmp_path, Kind(text.replace("float s =", "float small = {0.0001}, float s ="), "within request"))
    assert verdict_of(tmp_path).level == "within request"
    (tmp_path / "m" / "model.toml").write_text("[batching]\ntolerance = 0.1\n")
    assert verdict_of(tmp_path).level == "strangers"


def test_sample_makes_a_trial_possible(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["never runs"])
    assert verdict_of(tmp_path).reason.startswith("not tried: ")
    for folder in (tmp_path / "m", tmp_path / "m" / "1"):
        np.savez(folder / "sample.npz", i=np.full(3, 5000))
        assert "equal, or NaN" in verdict_of(tmp_path).reason
        (folder / "sample.npz").unlink()
    other = KINDS["never runs"].text.replace("float[1,4] t = {1,2,3,4}", "float[2,1] t = {1,2}")
    write_kind(tmp_path, Kind(other, "strangers"), "n")
    np.savez(tmp_path / "n" / "1" / "sample.npz", i=np.array([5000, 5001]))
    assert read(tmp_path).find("n", "").verdict.level == "strangers"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.ones((2, 4), "f4")}, "lacks input 'x', found z"),
        ({"x": np.ones((2, 4), "f8")}, "'x' is float64, expected FP32"),
        ({"x": np.ones(4, "f4")}, "expected 2 axes"),
        ({"x": np.ones((0, 4), "f4")}, "1 or more rows"),
    ],
)
def test_sample_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    write_kind(tmp_path, KINDS["dense"])
    np.savez(tmp_path / "m" / "1" / "sample.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path)


def test_sample_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["dense"])
    (tmp_path / "m" / "1" / "sample.npz").write_bytes(b"PK nothing")
    with pytest.raises(ConfigError, match=r"cannot read .*sample\.npz"):
        read(tmp_path)


def test_slow_model_batches_end_at_the_tried_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0, 1e4, 0.2))
    monkeypatch.setattr(batching_proof, "_clock", lambda: lambda: float(next(clock)))
    write_kind(tmp_path, KINDS["dense"])
    model = read(tmp_path).find("m", "")
    assert (model.verdict.most_rows, model.batching.max_rows, model.is_capped) == (8, 8, True)
    assert "cut short by time" in model.verdict.reason


# ---- padding -------------------------------------------------------------------------------------------------------

_HEAD = "(int64[N,S] i, int64[N,S] attention_mask) => (float[N,S,2] h, float[N,2] y) "
_TABLE = "<float[5,2] table = {0.5,1,2,-3,4,5,-6,7,8,9}, int64[1] a = {1}, int64[1] b = {2}> "
#: Mean of the embeddings under the mask, and the embeddings.
TEXT = Kind(
    _HEAD + _TABLE + "{ h = Gather (table, i) f = Cast <to = 1> (attention_mask) m = Unsqueeze (f, b) "
    "p = Mul (h, m) s = ReduceSum <keepdims = 0> (p, a) n = ReduceSum <keepdims = 1> (f, a) y = Div (s, n) }",
    "strangers",
    toml='[padding]\ninputs = { i = 1 }\nmask = "attention_mask"\noutputs = { h = 1 }\nmax_waste = 0.5\n',
)
#: It ignores the mask.
UNMASKED = Kind(
    _HEAD + _TABLE + "{ h = Gather (table, i) y = ReduceMean <keepdims = 0> (h, a) }", "strangers", toml=TEXT.toml
)


def text_of(rng: np.random.Generator, rows: int, length: int) -> dict[str, Array]:
    return {"i": rng.integers(0, 5, (rows, length)), "attention_mask": np.ones((rows, length), "i8")}


def test_padded_requests_share_batches_and_get_their_answers(tmp_path: Path) -> None:
    write_kind(tmp_path, TEXT)
    served = read(tmp_path)
    model = served.find("m", "")
    assert (model.verdict.pads, model.verdict.reason.endswith("; nor does padding")) == (True, True)
    rng = np.random.default_rng(2)
    feeds = [text_of(rng, rows, length) for rows, length in [(1, 9), (2, 10), (1, 12), (3, 11), (1, 40), (50, 11)]]
    company = Company(served)
    answers = company.answer("m", feeds)
    assert sorted(company.batches) == [1, 3, 4, 18, 32]  # 9 with 10, 11 with 12, and shards of the last
    for feed, answer in zip(feeds, answers, strict=True):
        assert not isinstance(answer, str), answer
        for name, expected in alone(model, feed).items():
            np.testing.assert_allclose(answer[name], expected, rtol=1e-5)
    counts = {path[-1]: count for path, count in company.meter.drain().items() if path[-1].endswith("elements")}
    # Of `i` and its mask.
    assert counts == {"padded_elements": 2 * (3 * 10 + 4 * 12 + 40), "filled_elements": 2 * (1 + 3)}


def test_padding_that_changes_answers_is_not_used(tmp_path: Path) -> None:
    write_kind(tmp_path, UNMASKED)
    served = read(tmp_path)
    model = served.find("m", "")
    assert (model.padding, model.verdict.level) == (None, "strangers")
    assert "not padded: output 'y' of a row of length " in model.verdict.reason
    rng = np.random.default_rng(2)
    feeds = [text_of(rng, 1, length) for length in (9, 10, 10)]
    company = Company(served)
    for feed, answer in zip(feeds, company.answer("m", feeds), strict=True):
        assert not isinstance(answer, str), answer
        np.testing.assert_allclose(answer["y"], alone(model, feed)["y"], rtol=1e-5)
    assert sorted(company.batches) == [1, 2]


def test_padded_batch_with_a_bad_row_answers_the_others(tmp_path: Path) -> None:
    write_kind(tmp_path, TEXT)
    served = read(tmp_path)
    rng = np.random.default_rng(2)
    feeds = [text_of(rng, 2, length) for length in (9, 10, 12)]
    feeds[1]["i"][1, 3] = 99
    first, bad, last = Company(served).answer("m", feeds)
    assert isinstance(bad, str)
    for feed, answer in ((feeds[0], first), (feeds[2], last)):
        assert not isinstance(answer, str), answer
        for name, expected in alone(served.find("m", ""), feed).items():
            np.testing.assert_allclose(answer[name], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("inputs = {}", "is empty"),
        ("inputs = { z = 1 }", "unknown tensor 'z'; available: i, attention_mask"),
        ("inputs = { i = 0 }", "axis 0 of 'i'"),
        ("inputs = { i = 2 }", "axis 2 of 'i'"),
        ("inputs = { i = 1 }\noutputs = { y = 1 }", r"axis 1 of 'y' \[any, 2\] is not open"),
        ("inputs = { i = 1 }\nvalues = { k = 1.0 }", "padding.values has 'k'"),
        ("inputs = { i = 1 }\nmax_waste = 1.0", "max_waste"),
        ("outputs = { h = 1 }", "inputs"),
    ],
)
def test_padding_table_that_does_not_fit_is_refused(tmp_path: Path, table: str, message: str) -> None:
    write_kind(tmp_path, TEXT)
    (tmp_path / "m" / "model.toml").write_text(f"[padding]\n{table}\n")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path)


def test_padded_request_that_had_begun_is_sent_as_it_is(tmp_path: Path) -> None:
    write_kind(tmp_path, TEXT)
    company = Company(read(tmp_path))
    request = company.admit("m", text_of(np.random.default_rng(2), 2, 9))
    split = company.router.split_whole(request)
    _, shard = split.advance(0.0)
    assert isinstance(shard, Shard)
    signature = decode_signature(ShardRecord.decode(shard.value).signature)
    assert [spec.shape for spec in signature.inputs] == [(9,), (9,)]
