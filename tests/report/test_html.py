import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from megarlhf.report.axes import ticks, value_axis
from megarlhf.report.charts import (
    MAX_BARS,
    MAX_POINTS,
    Series,
    line_chart,
    stacked_chart,
    stretches,
)
from megarlhf.report.html import write_report
from megarlhf.report.metrics import MetricsLog, RolloutLog
from megarlhf.report.rollout_table import MAX_ROLLOUTS, MAX_TEXT

VOID_TAGS = {"meta"}


class Page(HTMLParser):
    """Checks that every tag is closed in order; gathers tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def count(self, name, value):
        return sum(n == name and value in (v or "").split() for n, v in self.attributes)


def report(directory, config=None, summary=None):
    path = write_report(directory, title="A <run>", config=config or {}, summary=summary or {})
    assert path == directory / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    names = {name for name, _ in page.attributes}
    assert names.isdisjoint({"src", "href", "xlink:href", "srcset", "data", "action"})
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    return page, text


def write_metrics(directory, *records):
    log = MetricsLog(directory)
    for step, metrics in enumerate(records, 1):
        log.write(step, metrics)


def write_rollout(directory, step=1, **fields):
    defaults = {"prompt": "p", "response": "r", "label": "l", "reward": 1.0}
    RolloutLog(directory).write(step, **defaults | {"finish_reason": "stop"} | fields)


def full_step(step):
    return {
        "reward": step / 10,
        "kl": 0.01,
        "response_length": 9.0,
        "loss": -0.1,
        "grad_norm": 1.0,
        "logprob_gap": 3e-7,
        "eval_accuracy": 0.5,
        "seconds_generate": 1.0,
        "seconds_train": 2.0,
        "entropy": 2.0,
    }


def test_zero_steps(tmp_path):
    page, text = report(tmp_path)
    assert "no steps yet" in page.text
    assert "A &lt;run&gt;" in text
    assert "svg" not in page.tags


@pytest.mark.parametrize("count", [1, 2, 100, 1000])
def test_every_group_has_a_chart_and_nothing_refers_outside(tmp_path, count):
    write_metrics(tmp_path, *map(full_step, range(count)))
    write_rollout(tmp_path)
    page, text = report(tmp_path, {"a": {"b": 1}}, {"reward": 0.5})
    assert page.tags.count("svg") == 9
    assert "Time by phase" in page.text
    assert not re.search(r"https?://|src=|nan|inf\b", text)
    assert len(text) < 400_000


def test_missing_metrics_have_no_chart(tmp_path):
    write_metrics(tmp_path, {"loss": 1.0}, {"loss": 0.5})
    page, _ = report(tmp_path)
    assert page.tags.count("svg") == 1
    assert "Reward" not in page.text
    assert page.count("class", "legend") == 0


def test_null_is_a_gap_and_is_counted(tmp_path):
    write_metrics(tmp_path, {"loss": 1.0}, {"loss": math.nan}, {"loss": 2.0})
    page, _ = report(tmp_path)
    assert page.count("class", "line") == 2
    assert "1 not finite" in page.text
    assert "step 2, training: not finite" in page.text


def test_a_run_that_ends_in_nan_does_not_show_an_older_value(tmp_path):
    write_metrics(tmp_path, {"loss": 1.25}, {"loss": math.nan})
    page, _ = report(tmp_path)
    assert "not finiteLoss 1 not finite" in page.text


def test_only_nulls(tmp_path):
    write_metrics(tmp_path, {"loss": math.nan, "seconds_train": math.nan})
    page, _ = report(tmp_path)
    assert "Loss" in page.text
    assert "1 not finite" in page.text


def test_two_curves_have_a_legend(tmp_path):
    write_metrics(tmp_path, {"loss": 1.0}, {"loss": 0.9, "eval_loss": 1.1})
    page, _ = report(tmp_path)
    assert page.count("class", "legend") == 1
    assert page.count("class", "c1") > 0


def test_many_phases_are_summed(tmp_path):
    write_metrics(tmp_path, {f"seconds_p{i}": float(i) for i in range(12)})
    page, _ = report(tmp_path)
    assert "other" in page.text
    assert "p11" in page.text
    assert page.count("class", "c8") == 0


def test_rollouts_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>&\"'\ud800"
    write_rollout(tmp_path, prompt=evil, response=evil, label=evil)
    write_rollout(tmp_path, prompt=evil * 99, response=evil * 99, label={"a": evil})
    write_metrics(tmp_path, {evil: 1.0, f"seconds_{evil}": 1.0})
    page, text = report(tmp_path, {evil: evil}, {evil: evil, "nested": {evil: 1}})
    assert "<script" not in text
    assert "<script>alert('x')</script>&\"'" in page.text


def test_long_texts_fold_and_very_long_ones_are_cut(tmp_path):
    write_rollout(tmp_path, response="word " * 100, finish_reason="length")
    page, _ = report(tmp_path)
    assert page.tags.count("details") == 1
    assert page.text.count("word") == 100
    assert "cut at the limit" in page.text
    write_rollout(tmp_path, response="x" * (MAX_TEXT + 1234))
    page, _ = report(tmp_path)
    assert "(1,234 more characters)" in page.text


def test_rollouts_are_colored_by_reward(tmp_path):
    for reward in (-1.0, 0.0, 1.0, None):
        write_rollout(tmp_path, reward=reward)
    page, _ = report(tmp_path)
    assert [page.count("class", f"r{i}") for i in range(5)] == [1, 0, 1, 0, 1]


def test_equal_rewards_have_no_color(tmp_path):
    write_rollout(tmp_path, reward=1.0)
    page, _ = report(tmp_path)
    assert sum(page.count("class", f"r{i}") for i in range(5)) == 0


def test_many_rollouts_are_thinned_evenly_newest_first(tmp_path):
    for step in range(1, 3 * MAX_ROLLOUTS):
        write_rollout(tmp_path, step=step)
    _, text = report(tmp_path)
    shown = [int(step) for step in re.findall(r'data-name="step">(\d+)<', text)]
    assert len(shown) == MAX_ROLLOUTS
    assert (shown[0], shown[-1]) == (3 * MAX_ROLLOUTS - 1, 1)
    assert shown == sorted(shown, reverse=True)


def test_summary_and_configuration(tmp_path):
    summary = {"seconds_total": 3731, "reward": None, "done": True, "seconds_by": {"train": 90}}
    config = {"train": {"steps": 3, "resume": True}, "data": {"path": "json@x", "n": None}, "e": {}}
    page, _ = report(tmp_path, config, summary)
    for text in ("1h 02m", "yes", "1m 30s", "seconds total"):
        assert text in page.text
    for text in ("train.steps=3", "train.resume=true", "data.path=json@x", "data.n=null", "e={}"):
        assert text in page.text


def test_the_report_can_be_written_again(tmp_path):
    report(tmp_path)
    write_metrics(tmp_path, {"loss": 1.0})
    page, _ = report(tmp_path)
    assert "up to step 1" in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html"]


def test_stretches_keep_every_point_and_the_extremes():
    values = [math.sin(step) for step in range(1001)]
    values[500] = 99.0
    spots = stretches(list(enumerate(values)), MAX_POINTS)
    assert len(spots) <= MAX_POINTS
    assert (spots[0].first, spots[-1].last) == (0, 1000)
    assert all(a.last + 1 == b.first for a, b in pairwise(spots))
    assert max(spot.high for spot in spots) == 99.0


def test_a_stretch_with_one_null_keeps_its_numbers():
    (spot,) = stretches([(1, 1.0), (2, None), (3, 3.0)], 1)
    assert (spot.mean, spot.low, spot.high) == (2.0, 1.0, 3.0)


def test_a_long_stack_has_few_bars():
    points = [(step, 1.0) for step in range(1000)]
    assert 30 <= stacked_chart([Series("a", points)], unit="s").count("<rect") <= MAX_BARS


@pytest.mark.parametrize(
    "values", [[0.0], [1e-7], [-5.0, -4.0], [0.0, 1e9], [1.0, 1.0 + 1e-12], [-3e-9, 2e5]]
)
@pytest.mark.parametrize("zero", [True, False])
def test_all_points_lie_in_the_picture(values, zero):
    axis = value_axis(values, zero=zero)
    assert all(axis.end - 0.1 <= axis.at(value) <= axis.start + 0.1 for value in values)
    assert not zero or axis.low <= 0 <= axis.high
    assert line_chart([Series("a", list(enumerate(values)))], zero=zero)


def test_ticks_are_round_and_enclose():
    assert ticks(0, 0.93, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1, 4, 5, smallest=1) == [1, 2, 3, 4]
    assert ticks(-7, 12, 4) == [-10, -5, 0, 5, 10, 15]
