"""bonaware.report: one page that loads nothing, shows what was measured, and obeys no text."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from fakes import Digits, FakeLM

from bonaware import report
from bonaware.evaluation import Run, evaluate
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
    assert len(page.all("li")) - len(curves.mean) == run.rewards.size  # the legend has some too
    assert [text for _, text in page.all("pre", class_="prompt")] == list(run.samples.prompts)


def test_samples_say_reward_scores_answer_and_who_chose_them(run):
    page = Page(report.page(run))
    listed = [(attributes, text) for attributes, text in page.all("li") if text.startswith("#")]
    chosen = run.chosen()
    for place, (attributes, text) in enumerate(listed):
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
    options = {attributes["value"] for attributes, _ in page.all("option")}
    assert options == {"all", "unsolved", "missed-0"}


def test_other_rewards_are_numbers_and_not_right_or_wrong():
    text = report.page(made_of("ab", [0.25, 0.5]))
    assert "reward 0.25" in text
    assert "<b class=" not in text


def test_curves_are_drawn_with_their_intervals(run):
    page, curves = Page(report.page(run)), run.curves()
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
    assert "nan" not in text


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
    shown = [text for _, text in page.all("li") if text.startswith("#")]
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
    assert len(text) < 50_000 + 15_000  # the rest of the page


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
    """A function: page -> its elements after its script has run, and what the console said."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                   "google-chrome"))), None)
    if program is None:
        pytest.skip("needs chromium")

    def opened(path):
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                   "--enable-logging=stderr", "--virtual-time-budget=5000", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, re.findall(r"CONSOLE.*", done.stderr)

    return opened


@pytest.mark.slow
def test_a_browser_runs_the_script_and_nothing_else(browser, run, tmp_path):
    hostile = made_of(HOSTILE, [1.0] * len(HOSTILE))
    for name, made in {"run": run, "hostile": hostile}.items():
        dom, said = browser(made.report(tmp_path / f"{name}.html"))
        total = len(made.problems)
        assert said == []
        assert re.search(rf'<output id="count"[^>]*>{total} of {total} prompts</output>', dom)
        assert '<form id="finder">' in dom


@pytest.mark.slow
def test_a_browser_finds_prompts_by_text_and_by_kind(browser, tmp_path):
    """The page's own script with an entry typed in before it runs: same code, other policy."""
    run = many(3, 2)
    run.samples.prompts[1] = "The NEEDLE"
    run.rewards[2] = 0
    page = re.sub(r"<meta http-equiv[^>]*>", "", report.page(run))
    for change, found in [("search.value = ' Needle '", [1]), ("show.value = 'unsolved'", [2]),
                          ("search.value = 'nothing'", [])]:  # fmt: skip
        typed = page.replace("finder.hidden = false;", f"finder.hidden = false; {change};")
        (tmp_path / "page.html").write_text(typed)
        dom, said = browser(tmp_path / "page.html")
        assert said == []
        hidden = ["hidden" in tag for tag in re.findall(r"<details data-is[^>]*>", dom)]
        assert [p for p in range(3) if not hidden[p]] == found
        assert f">{len(found)} of 3 prompts</output>" in dom
