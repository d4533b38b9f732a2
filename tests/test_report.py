"""bonaware.report: one page that loads nothing, shows what was measured, and obeys no text."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import browser as browsers
import numpy as np
import pytest
from fakes import Digits, FakeLM

from bonaware import _figures, policies, report
from bonaware.evaluation import Run, evaluate
from bonaware.policy_run import PolicyRun
from bonaware.recorded import evaluate_recorded
from bonaware.samples import Sample, Samples
from bonaware.tasks import Problem

VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """Elements in order as (tag, attributes, text in it), and whether all were closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        assert len(element[1]) == len(attributes)  # none twice
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **wanted):
        wanted = {name.rstrip("_"): value for name, value in wanted.items()}
        return [(attributes, text) for found, attributes, text in self.elements
                if found == tag and wanted.items() <= attributes.items()]  # fmt: skip


def listed(page):
    """The samples of a page."""
    return [found for found in page.all("li") if found[1].startswith("#")]


@pytest.fixture(scope="module")
def run():
    return evaluate(FakeLM(), Digits(), 8, progress=False)


def made_of(texts, rewards, scores=None, name="p", prompt="q"):
    """A run of one prompt with these samples."""
    logp = np.array([-1], np.float32)
    drawn = [Sample(0, i, np.array([1]), logp, logp, logp, text, "eos", 1.0)
             for i, text in enumerate(texts)]
    return Run([Problem(name, prompt, None)], Samples.from_list([prompt], drawn, len(drawn)),
               np.array([rewards], float), scores or {}, None)


# -- what it shows ---------------------------------------------------------------


def test_page_shows_settings_figures_and_every_sample(run):
    page = Page(report.page(run))
    ((_, title),) = page.all("h1")
    assert title == "fake on digits"
    cells = [text for _, text in page.all("td")]
    heads = [text for _, text in page.all("th")]
    assert run.settings["top_k"] is None
    for name, value in run.settings.items():
        assert (name in heads) == (value is not None)
    assert json.dumps(run.settings["stop_strings"]) in cells
    curves = run.curves()
    for mean, low, high in zip(curves.mean["pass@k"], curves.low["pass@k"],
                               curves.high["pass@k"], strict=True):
        assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in cells
    for value in run.selected().values():
        assert f"{value:.3f}" in cells
    assert len(listed(page)) == run.rewards.size
    assert [text for _, text in page.all("pre", class_="prompt")] == list(run.samples.prompts)


def test_samples_say_reward_scores_answer_and_who_chose_them(run):
    page = Page(report.page(run))
    chosen = run.chosen()
    for place, (attributes, text) in enumerate(listed(page)):
        p, i = divmod(place, run.n)
        by = [name for name, picks in chosen.items() if picks[p] == i]
        assert text.startswith(f"#{i} · {'✓ right' if run.rewards[p, i] else '✗ wrong'} · ")
        assert f"likelihood {run.scores['likelihood'][p, i]:.4g} · " in text
        assert f"answer {run.answers[p][i]} · eos · " in text
        assert (f"chosen by {', '.join(by)}" in text) == bool(by)
        assert ("chosen by" in text) == bool(by) == (attributes.get("class") == "chosen")


def test_a_prompt_says_what_each_selector_chose_and_is_found_by_it():
    rewards = {"all right": [1, 1], "chose wrong": [0, 1], "none right": [0, 0]}
    tallies, kinds = [], []
    for values in rewards.values():
        page = Page(report.page(made_of("ab", values, {"rm": np.array([[2.0, 1.0]])})))
        ((attributes, _),) = (found for found in page.all("details") if "data-is" in found[0])
        kinds.append(attributes["data-is"])
        tallies.append(page.all("span", class_="tally")[0][1])
    assert kinds == ["", "missed-0", "unsolved"]
    assert tallies == ["2 of 2 right · rm ✓ right", "1 of 2 right · rm ✗ wrong",
                       "0 of 2 right · rm ✗ wrong"]  # fmt: skip
    options = [attributes["value"] for attributes, _ in page.all("option")]
    assert options == ["all", "unsolved", "missed-0", "", "0", "1"]
    assert [text for _, text in page.all("option")][3:] == ["as drawn", "reward", "rm"]


def test_other_rewards_are_numbers_and_not_right_or_wrong():
    text = report.page(made_of("ab", [0.25, 0.5]))
    assert "reward 0.25" in text
    assert "<b class=" not in text


def test_a_reward_of_one_is_not_right_where_more_is_possible():
    page = Page(report.page(made_of("abc", [0, 1, 4], {"rm": np.array([[1.0, 2.0, 0.0]])})))
    assert page.all("span", class_="tally")[0][1] == "mean reward 1.67 of 3 · rm reward 1"
    assert page.all("b", class_="right") == page.all("b", class_="wrong") == []


def test_a_prompt_that_a_stopped_policy_has_not_done_says_nothing_of_its_choice(run):
    stopped = PolicyRun(run.problems, run.samples, run.rewards, {}, None, complete=False,
                        done={0: 3}, policy=policies.get("best_of_n", n=8))
    page = Page(report.page(stopped))
    tallies = [text for _, text in page.all("span", class_="tally")]
    assert "policy" in tallies[0]
    assert not [text for text in tallies[1:] if "policy" in text]
    kinds = [attributes["data-is"] for attributes, _ in page.all("details")
             if "data-is" in attributes]
    assert not [kind for kind in kinds[1:] if "missed" in kind]


def test_curves_are_drawn_with_their_intervals(run):
    page, curves = Page(run.figures_html()), run.curves()
    assert len(page.all("polygon")) == len(page.all("polyline")) == len(curves.mean)
    said = [text for _, text in page.all("title")]
    for name in curves.mean:
        mean, low, high = (part[name][-1] for part in (curves.mean, curves.low, curves.high))
        assert f"{name}, k = 8: {mean:.3f} [{low:.3f}, {high:.3f}]" in said


def test_messages_and_ids_as_prompts_are_readable():
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert "system: be brief\n\nuser: hi</pre>" in report.page(made_of("a", [1], prompt=chat))
    assert "1 403 407</pre>" in report.page(made_of("a", [1], prompt=[1, 403, 407]))


def test_recorded_rewards_without_samples_have_a_page(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"correct": [1, 0], "rm": [null, 2]}\n{"correct": [0]' + ', "rm": [1]}\n')
    recorded = evaluate_recorded(tmp_path / "rows.jsonl", scores=["rm"])
    text = report.page(recorded)
    assert "1 of 3 samples have no score by rm and are chosen last" in text
    assert "1 of 2 right · rm <b class=\"wrong\">" in text
    assert "nan" not in re.sub(r'data-by="[^"]*"', "", text)


def test_recorded_texts_and_prompts_are_shown(tmp_path):
    row = {"question": "<2 + 2>", "correct": [1, 0], "responses": ["<4>", "<5>"]}  # and its id
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    page = Page(report.page(evaluate_recorded(tmp_path / "rows.jsonl")))
    assert [text for _, text in page.all("pre")] == ["<2 + 2>", "<4>", "<5>"]
    assert page.all("span", class_="id") == []


def test_samples_and_prompts_carry_what_they_are_sorted_by():
    scores = {"rm": np.array([[0.25, np.nan, -3]]), "lm": np.array([[np.nan] * 3])}
    page = Page(report.page(made_of("abc", [0, 1, 0.5], scores)))
    assert [attributes["data-by"] for attributes, _ in listed(page)] == [
        "0 0.25 nan", "1 nan nan", "0.5 -3 nan"]  # fmt: skip
    ((prompt, _),) = (found for found in page.all("details") if "data-by" in found[0])
    assert prompt["data-by"] == "0.5 0.25 nan"


# -- beside the curves -------------------------------------------------------------


def headings(text):
    return [said for _, said in Page(text).all("h2")]


COMPUTE, TEMPERATURES = "What the compute buys", "Temperature and tries"
JUDGES = "How well scores tell right from wrong"


def test_compute_is_shown_in_tokens_and_policies_beside_their_baselines(run, tmp_path):
    policy = PolicyRun(run.problems, run.samples, run.rewards, {}, None, done=dict.fromkeys(
        range(6), 3), policy=policies.get("best_of_n", n=8))  # fmt: skip
    text = report.page(policy, beside=[run])
    said = [words for _, words in Page(text).all("title")]
    mean, low, high = policy.accuracy()
    cost = policy.tokens_per_prompt.mean()
    assert f"{policy.policy!r}, tokens = {cost:.4g}: {mean:.3f} [{low:.3f}, {high:.3f}]" in said
    curves = run.curves()
    cost = 8 * (run.samples.lengths.sum(axis=1) / 8).mean()
    assert any(words.startswith(f"majority@k, tokens = {cost:.4g}: "
                                f"{curves.mean['majority@k'][-1]:.3f} [") for words in said)
    assert COMPUTE in headings(text)
    alone = report.page(policy)
    assert "One run under a policy is one point" in alone
    assert not Page(alone).all("polyline")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"correct": [1, 0]}))
    assert COMPUTE not in headings(report.page(evaluate_recorded(tmp_path / "rows.jsonl")))


def test_temperatures_are_shown_with_the_law_or_why_there_is_none():
    class Warm(FakeLM):
        def sample(self, request, index, temperature, seed):
            sample = super().sample(request, index, temperature, seed)
            return sample if sample.temperature > 0.5 else replace(sample, text="never")

    two = evaluate(FakeLM(), Digits(), 8, temperature=[1.0] * 4 + [0.7] * 4, progress=False)
    page = report.page(two)
    assert TEMPERATURES in headings(page)
    assert "at k = 16 T = " in page
    assert [text for _, text in Page(page).all("th", scope="row")].count("16, predicted") == 1
    cold = evaluate(Warm(), Digits(), 8, temperature=[1.0] * 4 + [0.3] * 4, progress=False)
    assert "temperature 0.3 has 0 of 3" in report.page(cold)
    assert TEMPERATURES not in headings(report.page(evaluate(FakeLM(), Digits(), 8,
                                                             progress=False)))


def test_temperatures_of_runs_beside_count_once_and_of_the_same_model_only(run):
    class Other(FakeLM):
        fingerprint = "f1"

    warm, other = (evaluate(lm, Digits(), 8, temperature=0.5, progress=False)
                   for lm in (FakeLM(), Other()))  # fmt: skip
    again = evaluate(FakeLM(), Digits(), 8, rng=1, progress=False)
    found = _figures.temperatures([run, warm, again, other], 0.95)
    assert list(found.curves) == [0.5, 1]
    for made, of in zip(found.curves.values(), (warm, run), strict=True):
        np.testing.assert_array_equal(made.mean["pass@k"], of.curves().mean["pass@k"])
    assert _figures.temperatures([run, other], 0.95) is None
    assert _figures.temperatures([other, run, warm], 0.95) is None


def test_runs_drawn_otherwise_give_no_temperatures(run):
    warm = evaluate(FakeLM(), Digits(), 8, temperature=0.5, top_p=0.9, progress=False)
    assert _figures.temperatures([run, warm], 0.95) is None


def test_ways_of_several_runs_are_told_apart_whatever_they_are_called(run):
    rules = [PolicyRun(run.problems, run.samples, run.rewards, {}, None, done={0: i},
                       policy=policies.get("best_of_n", n=8)) for i in (0, 1)]  # fmt: skip
    names = [one.name for one in _figures.spent([*rules, run, run], 0.95, tokens=True)]
    assert len(set(names)) == len(names)
    assert names[:2] == [f"{rules[0].policy!r}, run {number}" for number in (1, 2)]
    assert names[-1].endswith("fake on digits, run 4")
    assert [one.name for one in _figures.spent([run], 0.95, tokens=True)] == [*run.curves().mean]


def test_judges_are_shown_with_their_calibration_where_scores_are_probabilities():
    scores = {"sure": np.array([[0.9, 0.2, 0.4, 0.7]]), "log": np.array([[-1.0, -2, -3, -4]])}
    text = report.page(made_of("abcd", [1, 0, 1, 0], scores))
    assert JUDGES in headings(text)
    cells = [said for _, said in Page(text).all("td")]
    at = cells.index("0.750")  # sure: 3 of 4 pairs; ECE (0.1 + 0.2 + 0.6 + 0.7) / 4
    assert cells[at : at + 4] == ["0.750", "0.750", "0.400", "0.225"]
    assert cells[at + 4 : at + 8] == ["0.750", "0.750", "-", "-"]
    assert "sure, score = 0.9: 1.000" in [said for _, said in Page(text).all("title")]
    assert JUDGES not in headings(report.page(made_of("ab", [1, 7], {"rm": np.ones((1, 2))})))


def test_runs_of_other_problems_are_not_put_beside_and_nothing_is_written(run, tmp_path):
    with pytest.raises(ValueError, match=r"problem 0 is test/0 in fake on digits and p in samples"):
        run.report(tmp_path / "r.html", beside=[made_of("ab", [1, 0])])
    fewer = evaluate(FakeLM(), Digits(), 8, limit=2, progress=False)
    with pytest.raises(ValueError, match="problem 2 is test/2 in fake on digits and missing in"):
        run.report(tmp_path / "r.html", beside=[fewer])
    assert not list(tmp_path.iterdir())


def test_the_same_ids_with_other_answers_are_other_problems(run):
    others = replace(run, problems=[Problem(one.id, one.prompt, "?") for one in run.problems])
    with pytest.raises(ValueError, match=r"the answer to test/0 is .* in fake on digits and '\?'"):
        report.page(run, beside=[others])
    unknown = replace(run, problems=[Problem(one.id, one.prompt, None) for one in run.problems])
    assert COMPUTE in headings(report.page(run, beside=[unknown]))
    pair = replace(run, problems=[Problem(one.id, "", {"a": (1, np.int64(2)), "b": 3})
                                  for one in run.problems])  # fmt: skip
    stored = replace(run, problems=[Problem(one.id, "", {"b": 3, "a": [1, 2]})
                                    for one in run.problems])  # fmt: skip
    assert COMPUTE in headings(report.page(pair, beside=[stored]))


def test_an_interrupted_run_has_a_page(tmp_path):
    with pytest.warns(UserWarning, match="interrupted"):
        broken = evaluate(FakeLM(stop_after=3), Digits(), 8, progress=False)
    page = Page(report.page(broken))
    assert "there are no figures" in page.all("section")[0][1]
    assert len(page.all("li")) == 3
    assert "no sample" in page.all("span", class_="tally")[-1][1]


def test_the_same_run_gives_the_same_file(run, tmp_path):
    one = run.report(tmp_path / "one.html")
    assert one == tmp_path / "one.html"
    assert one.read_bytes() == run.report(str(tmp_path / "two.html")).read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    assert b"90 % interval" in run.report(one, level=0.9).read_bytes()


def test_a_page_that_cannot_be_written_names_the_file_and_leaves_nothing(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/.*r\.html"):
        run.report(tmp_path / "none" / "r.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        run.report(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# -- its size --------------------------------------------------------------------


def many(prompts, n, text="x"):
    rewards = np.zeros((prompts, n))
    rewards[:, -1] = 1
    logp = np.array([-1], np.float32)
    drawn = [Sample(p, i, np.array([1]), logp, logp, logp, text, "eos", 1.0)
             for p in range(prompts) for i in range(n)]
    return Run([Problem(str(p), "q", None) for p in range(prompts)],
               Samples.from_list(["q"] * prompts, drawn, n), rewards, {"exact": rewards}, None)


def test_only_so_many_prompts_and_samples_are_shown_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(report, "PROMPTS", 3)
    monkeypatch.setattr(report, "SAMPLES", 4)
    page = Page(report.page(many(5, 8)))
    shown = [text for _, text in listed(page)]
    assert [text.split()[0] for text in shown] == ["#0", "#1", "#2", "#3", "#7"] * 3
    assert "chosen by exact" in shown[4]
    ((_, said),) = [found for found in page.all("p") if "prompts, " in found[1]
                    and "first" in found[1]]  # fmt: skip
    assert said.startswith("The first 3 of 5 prompts, of each the first 4 samples and those that")


def test_long_texts_are_cut_and_the_page_has_a_budget(monkeypatch):
    monkeypatch.setattr(report, "BUDGET", 50_000)
    text = report.page(many(20, 2, "<" * 5000))
    assert "… 3000 characters more" in text
    assert "The first 3 of 20 prompts" in text
    assert len(text) < 50_000 + 20_000  # the rest of the page


# -- hostile text ----------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</pre></li><h1>mine</h1>",
    "</script><script>alert(1)</script>", "&lt;b&gt; & &amp;", "' onclick='x", "<!--", "]]>",
    "javascript:alert(1)", "</title><style>*{display:none}</style>",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_text_wherever_it_stands(text):
    run = made_of([text], [1], {text: np.array([[1.0]])}, name=text, prompt=text)
    run.settings = {"model": text, "task": text, text: text, "list": [text]}
    run.answers = [[text]]
    plain = made_of(["x"], [1], {"x": np.array([[1.0]])}, name="x", prompt="x")
    plain.settings = {"model": "x", "task": "x", "x": "x", "list": ["x"]}
    plain.answers = [["x"]]
    page, same = Page(report.page(run)), Page(report.page(plain))
    assert [element[:2] for element in page.elements[4:]] == [
        element[:2] for element in same.elements[4:]]  # fmt: skip
    assert page.all("pre")[1][1] == text
    assert page.all("h1")[0][1] == f"{text} on {text}"


def test_characters_that_steer_are_shown_as_escapes():
    hostile = "a\x00b\x1b[31mc\u202egnp\u2066d\r\ud800e\u2028f\x85"
    page = report.page(made_of([hostile], [1]))
    assert r"a\x00b\x1b[31mc\u202egnp\u2066d\r\ud800e\u2028f\x85" in page
    page.encode("utf-8")


def test_names_that_steer_are_shown_as_escapes_in_charts_and_tables_too(run, tmp_path):
    name = "rm\u202e\x1b\ud800"
    named = made_of("ab", [1, 0], {name: np.array([[0.9, 0.2]])})
    page = report.page(named, beside=[named])
    assert not re.search("[\u202e\x1b\ud800]", page)
    assert r"best-of-k by rm\u202e\x1b\ud800" in page
    assert named.report(tmp_path / "page.html").read_bytes()


def test_other_scripts_and_spaces_are_left_as_they_are():
    text = "שלום\tمرحبا\u00a0می\u200cخواهم\u3000日本 👩\u200d💻\n"  # noqa: RUF001
    page = Page(report.page(made_of([text], [1])))
    ((_, shown),) = page.all("pre", dir="auto")[1:]
    assert shown == text


def test_page_loads_nothing_and_runs_its_own_script_alone(run):
    text = report.page(run)
    page = Page(text)
    ((_, script),), ((_, style),) = page.all("script"), page.all("style")
    (allowed,) = (found["content"] for found, _ in page.all("meta") if "http-equiv" in found)
    assert "default-src 'none'" in allowed
    for content in (script, style):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in allowed
    assert "unsafe" not in allowed
    names = {name for _, attributes, _ in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "href", "srcset", "action", "style", "data", "poster"}
    assert not re.search(r"https?:|url\(|@import|import\(|fetch\(|XMLHttp", style + script)


# -- in a browser ----------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if browsers.program() is None:
        pytest.skip("needs Chromium (apt install chromium)")
    opened = browsers.Browser()
    yield opened
    opened.close()


def opened(browser, run, tmp_path, **options):
    browser.open(run.report(tmp_path / "page.html"), **options)
    assert browser.said == []
    return browser


def shown(browser):
    """Ids of the prompts that are seen, in order."""
    return browser.run("[...document.querySelectorAll('#prompts > details:not([hidden]) .id')]"
                       ".map(id => id.textContent).join()")  # fmt: skip


def shown_samples(browser, prompt=0):
    """Numbers of the samples of a prompt that are seen, in order."""
    return browser.run(f"[...document.querySelectorAll('#prompts > details')[{prompt}]"
                       ".querySelectorAll('li:not([hidden]) p')]"
                       ".map(said => said.textContent.split(' ')[0]).join(' ')")  # fmt: skip


def focus(browser):
    return browser.run("document.activeElement.id || document.activeElement.textContent")


def choose(browser, name, value):
    browser.run(f"{{const it = document.getElementById('{name}'); it.value = '{value}';"
                f"it.checked = {json.dumps(value is True)};"
                "it.dispatchEvent(new Event('change')); it.dispatchEvent(new Event('input'));}")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_without_an_error_in_both_schemes(browser, run, tmp_path, scheme):
    opened(browser, run, tmp_path, scheme=scheme)
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 24, 28)")
    assert browser.run("document.querySelector('figure svg').getBoundingClientRect().height") > 100
    assert browser.run("document.getElementById('count').value") == "6 of 6 prompts"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1000])
def test_what_has_the_focus_is_not_behind_the_finder(browser, tmp_path, width):
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=700,
                 deviceScaleFactor=1, mobile=False)
    opened(browser, many(40, 1), tmp_path)
    browser.press("/")
    for key in ["ArrowDown"] * 30 + ["ArrowUp"] * 20:
        browser.press(key)
    top = browser.run("document.activeElement.getBoundingClientRect().top")
    below = browser.run("document.getElementById('finder').getBoundingClientRect().bottom")
    browser.send("Emulation.clearDeviceMetricsOverride")
    assert top >= max(0, below)


@pytest.mark.slow
def test_a_browser_shows_hostile_text_as_text(browser, tmp_path):
    opened(browser, made_of(HOSTILE, [1.0] * len(HOSTILE), prompt=HOSTILE[0]), tmp_path)
    texts = browser.run("[...document.querySelectorAll('li > pre')].map(pre => pre.textContent)")
    assert texts == HOSTILE
    assert browser.run("document.scripts.length") == 1
    assert browser.run("document.images.length") == 0


@pytest.mark.slow
def test_a_browser_finds_prompts_and_samples_by_text_and_by_kind(browser, tmp_path):
    run = many(3, 3)
    run.samples.prompts[1] = "The NEEDLE"
    run.samples.text[2][1] = "a needle too"
    run.rewards[0] = 0
    opened(browser, run, tmp_path)
    browser.press("/")
    assert focus(browser) == "search"
    browser.type(" Needle ")
    assert shown(browser) == "1,2"
    assert shown_samples(browser, 1) == "#0 #1 #2"  # the prompt holds it
    assert shown_samples(browser, 2) == "#1"
    assert browser.run("document.getElementById('count').value") == "2 of 3 prompts"
    choose(browser, "search", "nothing like it")
    assert shown(browser) == ""
    choose(browser, "search", "")
    choose(browser, "show", "unsolved")
    assert shown(browser) == "0"
    assert shown_samples(browser) == "#0 #1 #2"


@pytest.mark.slow
def test_a_browser_sorts_by_reward_and_score_and_back(browser, tmp_path):
    run = many(3, 4)
    run.rewards[:] = [[0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]
    run.scores = {"rm": np.array([[np.nan, -2, 10, 9], [1, 1, 1, 1], [30, 4, 5, -1.5]])}
    opened(browser, run, tmp_path)
    choose(browser, "sort", "0")
    assert (shown(browser), shown_samples(browser, 0)) == ("1,0,2", "#0 #1 #3 #2")
    choose(browser, "sort", "1")
    assert (shown(browser), shown_samples(browser, 0)) == ("2,0,1", "#0 #2 #1 #3")
    assert shown_samples(browser, 1) == "#2 #3 #1 #0"  # without a score: last
    choose(browser, "rising", True)
    assert (shown(browser), shown_samples(browser, 1)) == ("1,0,2", "#1 #3 #2 #0")
    choose(browser, "rising", False)
    choose(browser, "sort", "")
    assert (shown(browser), shown_samples(browser, 0)) == ("0,1,2", "#0 #1 #2 #3")


@pytest.mark.slow
def test_a_browser_goes_from_prompt_to_prompt_by_keys(browser, tmp_path):
    run = many(4, 2)
    run.rewards[1] = 0
    opened(browser, run, tmp_path)
    choose(browser, "show", "missed-0")  # none: exact chose what is right
    assert shown(browser) == ""
    run.scores["exact"] = -run.rewards
    opened(browser, run, tmp_path)
    choose(browser, "show", "missed-0")
    assert shown(browser) == "0,2,3"
    browser.press("/")
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    assert focus(browser).startswith("2 ")
    browser.press("Enter")
    assert browser.run("document.querySelectorAll('#prompts > details[open]').length") == 1
    assert browser.run("document.querySelectorAll('#prompts > details')[2].open")
    browser.press("ArrowUp")
    assert focus(browser).startswith("0 ")
    browser.press("ArrowUp")
    assert focus(browser) == "search"


@pytest.mark.slow
@pytest.mark.clock
def test_5000_samples_are_painted_in_2_seconds_and_found_and_sorted_in_one(browser, tmp_path):
    run = many(100, 50, "word " * 200)
    opened(browser, run, tmp_path)
    assert browser.run("document.querySelectorAll('#prompts li').length") == 5000
    assert browser.first_paint() < 2000
    for change in ("search.value = 'no such'; update()", "sort.value = '1'; order()"):
        seconds = browser.run(f"{{const since = performance.now(); {change};"
                              "document.body.offsetHeight; (performance.now() - since) / 1000}")
        assert seconds < 1
