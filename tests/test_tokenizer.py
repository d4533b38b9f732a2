"""bonaware.tokenizer: ids, texts, chats, and stop strings across tokens."""

import contextlib
import json
import random
import shutil
import time

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from bonaware import _chat
from bonaware.tokenizer import StopStrings, Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
TEXTS = ["Hello, world! 你好", "", " two  blanks ", "a\n\tb", "é\N{GRINNING FACE}z", "x" * 50]


@pytest.fixture(scope="session")
def llama(data):
    """SentencePiece kind: bytes as tokens, a blank in front that the decoder drops."""
    return Tokenizer.load(data / "ckpt" / "aidreams260K")


@pytest.fixture(scope="session")
def bpe(data):
    """Byte-level BPE with special tokens and a chat template."""
    return Tokenizer.load(data / "tokenizers" / "minimind")


@pytest.fixture
def kind(request):
    return request.getfixturevalue(request.param)


both = pytest.mark.parametrize("kind", ["llama", "bpe"], indirect=True)


def gpt2_like(data, folder, name):
    """A Tokenizer from an encoder.json and a vocab.bpe, as OpenAI publishes them."""
    path = data / "tokenizers" / name
    vocab = json.loads((path / "encoder.json").read_text(encoding="utf-8"))
    lines = (path / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    backend = Backend(models.BPE(vocab, merges, ignore_merges=name == "llama3.2"))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "llama3.2":
        pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                   r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
        split = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


# -- ids and texts -----------------------------------------------------------


@both
@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(kind, text):
    ids = kind.encode(text)
    assert ids.dtype == np.int32
    assert kind.decode(ids) == text


def test_ids_are_the_recorded_ones(llama, bpe, data):
    assert bpe.encode("Hello, world! 你好").tolist() == [1602, 47, 1707, 36, 256, 1968]
    recorded = json.loads((data / "ckpt" / "aidreams260K" / "greedy_127.json").read_text())
    text = llama.decode(recorded["greedy_ids"])
    assert " " + text == recorded["text"]
    assert llama.encode(text).tolist() == recorded["prompt_ids"] + recorded["greedy_ids"]
    assert llama.encode(text, add_special_tokens=False).tolist() == recorded["greedy_ids"]


@pytest.mark.parametrize(("name", "vectors", "file"), [
    ("gpt2", "distilgpt2", "gpt-2"),
    ("llama3.2", "pcuenq/Llama-3.2-1B-Instruct-tokenizer", "llama-bpe"),
])
def test_known_vocabularies_give_the_published_vectors(data, tmp_path, name, vectors, file):
    tokenizer = gpt2_like(data, tmp_path, name)
    folder = data / "tokenizers"
    cases = json.loads((folder / "swift_transformers" / "tokenizer_tests.json").read_text())
    cases = cases[vectors]
    assert len(cases) == 18
    for case in cases:
        want = [id for id in case["encoded"]["input_ids"] if id != 128000]
        assert tokenizer.encode(case["input"]).tolist() == want
        assert tokenizer.decode(want) == case["input"]
    ggml = folder / "ggml-vocab" / f"ggml-vocab-{file}.gguf"
    texts = ggml.with_name(ggml.name + ".inp").read_text(encoding="utf-8")
    rows = ggml.with_name(ggml.name + ".out").read_text().splitlines()
    texts = texts.split("\n__ggml_vocab_test__\n")[:-1]
    assert len(texts) == len(rows) == 46
    for text, row in zip(texts, rows, strict=True):
        assert tokenizer.encode(text).tolist() == [int(id) for id in row.split()]


@both
def test_prompt_and_completion_join_at_every_cut(kind):
    text = "Once upon a time, 你好 é\N{GRINNING FACE}. The end"
    ids = kind.encode(text)
    first = 1 + (ids[0] in kind.special_ids)
    for cut in range(first, len(ids) + 1):
        before = kind.decode(ids[:cut]).rstrip(BROKEN)
        assert before + kind.decode_completion(ids[:cut], ids[cut:]) == text


def test_a_completion_of_nothing_has_no_blank_in_front(llama):
    ids = llama.encode("Echoes of")
    assert llama.decode_completion(ids[:1], ids[1:]) == "Echoes of"
    assert llama.decode_completion([], ids) == "Echoes of"
    assert llama.decode_completion(ids, llama.encode("x", add_special_tokens=False)) == " x"
    assert llama.decode_completion(ids, []) == ""


def test_special_tokens_are_left_out_of_completions(bpe):
    ids = bpe.encode("a<|im_end|>b")
    assert bpe.decode_completion([5], ids) == "ab"
    assert bpe.decode(ids) == "ab"
    assert bpe.decode(ids, skip_special_tokens=False) == "a<|im_end|>b"


def test_ids_outside_the_vocabulary_decode_to_nothing(bpe):
    assert bpe.decode([10**6]) == ""
    assert bpe.decode([]) == ""


def test_padding_and_truncation_of_the_file_are_off(data, tmp_path):
    backend = Backend.from_file(str(data / "tokenizers" / "minimind" / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=20)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.load(tmp_path).encode("Hello, world! 你好")) == 6


def test_pieces_are_texts_inside_a_text(llama):
    assert llama.pieces[llama.encode("Echoes of")[-1]] == " of"
    assert llama.pieces[3 + ord("\n")] == "\n"
    assert llama.pieces[3 + 0xE4] == BROKEN
    assert len(llama.pieces) == llama.vocab_size == 512


# -- folders -----------------------------------------------------------------


@pytest.fixture
def folder(data, tmp_path):
    shutil.copy(data / "tokenizers" / "minimind" / "tokenizer.json", tmp_path)
    return tmp_path


def write(folder, name, value):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_special_tokens_are_read_from_both_files_and_both_spellings(folder):
    write(folder, "special_tokens_map.json", {"bos_token": "x", "unk_token": "u"})
    write(folder, "tokenizer_config.json",
          {"bos_token": {"content": "<|im_start|>"}, "pad_token": None, "eos_token": "e"})
    assert Tokenizer.load(folder).special_tokens == {
        "bos_token": "<|im_start|>", "eos_token": "e", "unk_token": "u"}


def test_template_files_win_over_the_field(folder):
    assert Tokenizer.load(folder).chat_templates == {}
    write(folder, "tokenizer_config.json", {"chat_template": "field"})
    assert Tokenizer.load(folder).chat_templates == {"default": "field"}
    write(folder, "chat_template.jinja", "file")
    write(folder, "additional_chat_templates/tool_use.jinja", "tools")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.chat_templates == {"default": "file", "tool_use": "tools"}
    assert tokenizer.render_chat([{"role": "user"}], chat_template="tool_use") == "tools"


@pytest.mark.parametrize("field", [
    [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}],
    {"default": "d", "rag": "r"},
])
def test_several_templates_in_the_field(folder, field):
    write(folder, "tokenizer_config.json", {"chat_template": field})
    assert Tokenizer.load(folder).chat_templates == {"default": "d", "rag": "r"}


def test_save_copies_what_load_reads(folder, tmp_path_factory):
    write(folder, "tokenizer_config.json", {"eos_token": "e"})
    write(folder, "additional_chat_templates/t.jinja", "x")
    target = tmp_path_factory.mktemp("target")
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(target)
    copy = Tokenizer.load(target)
    assert copy.special_tokens == tokenizer.special_tokens
    assert copy.chat_templates == {"t": "x"}
    assert copy.encode("Hello").tolist() == tokenizer.encode("Hello").tolist()


def test_repr_says_what_it_is(bpe):
    assert repr(bpe) == "Tokenizer('minimind', 6400 tokens, chat templates: default)"


# -- chats -------------------------------------------------------------------

TOOL = {"type": "function", "function": {
    "name": "weather", "description": 'Weather <now> & "later"',
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
CHATS = {
    "user": [{"role": "user", "content": "Hi <b>&\n é"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"},
               {"role": "assistant", "content": "4"}, {"role": "user", "content": "3+3?"}],
    "think": [{"role": "user", "content": "Hi"},
              {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
              {"role": "user", "content": "2+2?"}],
    "wrong": [{"role": "assistant", "content": "Hi"}, {"role": "assistant", "content": "Hi"}],
    "null": [{"role": "user", "content": "Hi", "tool_calls": None}],
    "tool": [{"role": "user", "content": "Weather?"},
             {"role": "assistant", "content": "", "tool_calls": [
                 {"type": "function", "id": "abcdefghi", "function": {
                     "name": "weather", "arguments": {"city": "Köln", "n": [1, 2]}}}]},
             {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "sun"}],
}


@pytest.fixture(scope="session")
def reference():
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")

    def render(template, chat, **variables):
        chat = [{k: v for k, v in message.items() if v is not None} for message in chat]
        rendered, _ = utilities.render_jinja_template([chat], chat_template=template, **variables)
        return rendered[0]

    return render


def templates(data):
    paths = sorted((data / "chat_templates").glob("*.jinja"))
    assert len(paths) == 11
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("more", [{}, {"tools": [TOOL]}, {"enable_thinking": False}],
                         ids=["plain", "tools", "no_thinking"])
def test_templates_render_as_in_transformers(data, reference, chat, more):
    for name, template in templates(data).items():
        for prompted in (True, False):
            variables = {"bos_token": "<s>", "eos_token": "</s>", "date_string": "1 Jan 2026",
                         "add_generation_prompt": prompted, **more}
            try:
                want = reference(template, chat, **variables)
            except Exception:
                with pytest.raises(ValueError, match="chat template: "):
                    _chat.render(template, chat, **variables)
            else:
                assert _chat.render(template, chat, **variables) == want, name


def test_templates_render_known_chats(data):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "2+2?"}]
    nemo = templates(data)["mistralai-Mistral-Nemo-Instruct-2407"]
    text = _chat.render(nemo, chat, bos_token="BOS", eos_token="EOS", add_generation_prompt=True)
    assert text == "BOS[INST]Hi[/INST]HelloEOS[INST]2+2?[/INST]"


def test_a_chat_gets_one_bos_and_no_more(folder):
    write(folder, "tokenizer_config.json", {
        "bos_token": "<|im_start|>",
        "chat_template": "{{ bos_token }}{{ messages[0].content }}"})
    assert Tokenizer.load(folder).chat([{"role": "user", "content": "Hello"}]).tolist() == [1, 1602]


def test_generation_blocks_leave_their_body():
    template = ("{% for m in messages %}{% generation %}<{{ m.content }}>{% endgeneration %}"
                "{% endfor %}")
    assert _chat.render(template, [{"content": "a"}, {"content": "b"}]) == "<a><b>"


HOSTILE = {
    "attribute": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "mutation": ("{{ messages.append(1) }}", "unsafe"),
    "namespace": ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "'__class__'"),
    "multiply": ("{{ 'x' * 9999999999 }}", "refused"),
    "multiply_list": ("{{ ([1] * 9999999) * 9999 }}", "refused"),
    "power": ("{{ 10 ** 10 ** 10 }}", "refused"),
    "center": ("{{ 'x'|center(9999999999) }}", "refused"),
    "ljust": ("{{ 'x'.ljust(9999999999) }}", "refused"),
    "format": ("{{ '{:9999999999}'.format(1) }}", "refused"),
    "percent": ("{{ '%9999999999d' % 1 }}", "refused"),
    "percent_filter": ("{{ '%9999999999d'|format(1) }}", "refused"),
    "doubling": ("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
                 "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "longer than 10000000"),
    "adding": ("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
               "{% set ns.x = ns.x + ns.x %}{% endfor %}", "longer than 10000000"),
    "range": ("{{ range(999999)|list }}", "[Rr]ange too big"),
    "lipsum": ("{{ lipsum(n=100000) }}", "lipsum"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "syntax": ("{% for %}", "Expected an expression"),
    "undefined": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "types": ("{{ 1 + 'a' }}", "TypeError"),
    "raised": ("{{ raise_exception('no system role') }}", "no system role"),
}


@pytest.mark.parametrize(("template", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_give_one_sentence(template, message):
    with pytest.raises(ValueError, match=f"^chat template: .*{message}"):
        _chat.render(template, [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("template", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
])
def test_endless_templates_are_stopped(template, monkeypatch):
    monkeypatch.setattr(_chat, "SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"ran longer than 0\.2 s"):
        _chat.render(template, [{"role": "user", "content": "Hi"}])
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("messages", "error", "message"), [
    ([], ValueError, "need at least one chat message, got none"),
    (["Hi"], TypeError, r"messages\[0\] must be a dict with role and content, got str"),
    ([{"content": object()}], TypeError, r"messages\[0\]\['content'\] must be str, number"),
])
def test_chats_that_are_none_are_refused(bpe, messages, error, message):
    with pytest.raises(error, match=message):
        bpe.chat(messages)


def test_a_missing_template_says_which_there_are(bpe, llama):
    with pytest.raises(ValueError, match=r"chat template named 'default', but .* has none"):
        llama.chat([{"role": "user", "content": "Hi"}])
    with pytest.raises(ValueError, match=r"chat template named 'rag', but .* has default"):
        bpe.chat([{"role": "user", "content": "Hi"}], chat_template="rag")


# -- stop strings ------------------------------------------------------------


def first_stop(text, stops):
    return min((text.find(stop) for stop in stops if stop in text), default=None)


@both
def test_stop_strings_are_found_at_the_token_that_completes_them(kind):
    """Against the definition: decode everything after every token."""
    random.seed(0)
    text = "Once upon a time, 你好 é\N{GRINNING FACE}.\n\nQuestion: The end of it all"
    prompt = kind.encode('"Echoes of')
    ids = kind.encode('"Echoes of ' + text)[len(prompt):]
    full = kind.decode_completion(prompt, ids)
    places = [sorted(random.sample(range(len(full) + 1), 2)) for _ in range(150)]
    for stops in [[full[a:b]] for a, b in places] + [["zzz", "Question:", "\n\n"], ["é", "好"]]:
        finder = StopStrings(kind, stops)
        watch = finder.watch(kind.vocab_size)
        for end in range(1, len(ids) + 1):
            so_far = kind.decode_completion(prompt, ids[:end])
            if first_stop(so_far, stops) is not None:
                break
            assert not finder.hit(ids[:end])
            assert finder.cut(prompt, ids[:end]) == (so_far, False)
        assert watch[ids[end - 1]]
        assert finder.hit(ids[:end])
        assert finder.hit(ids[:end].tolist())
        assert finder.cut(prompt, ids[:end]) == (so_far[:first_stop(so_far, stops)], True)
        assert finder.cut(prompt, ids) == (full[:first_stop(full, stops)], True)


@both
def test_the_watch_is_selective_and_as_wide_as_the_logits(kind):
    marks = StopStrings(kind, ["Question:"]).watch(kind.vocab_size + 64)
    assert marks.dtype == np.uint8
    assert len(marks) == kind.vocab_size + 64
    assert not marks[kind.vocab_size:].any()
    assert marks[kind.encode(":")[-1]] == 1
    assert marks[kind.encode("e")[-1]] == 0
    assert StopStrings(kind, ["Question:"]).watch(10).shape == (10,)


def test_without_stop_strings_nothing_stops(bpe):
    finder = StopStrings(bpe, [])
    ids = bpe.encode("Hello")
    assert not finder.watch(bpe.vocab_size).any()
    assert not finder.hit(ids)
    assert finder.cut([], ids) == ("Hello", False)


@pytest.mark.parametrize(("stop", "text"), [
    ("<|im_end|>", "Hello"), ("o<|im_end|>", "Hell"), ("\nQ", "Hello"), ("Hello", ""),
])
def test_a_special_token_may_be_a_stop_string_and_is_in_no_text(bpe, stop, text):
    prompt = bpe.encode("Say")
    ids = bpe.encode("Hello<|im_end|>\nQuestion")
    assert StopStrings(bpe, stop).cut(prompt, ids) == (text, True)


def test_a_blank_that_opens_a_stop_string_may_be_the_first_token(llama):
    finder = StopStrings(llama, " a")
    prompt = llama.encode("Echoes of")
    ids = llama.encode("a", add_special_tokens=False)
    assert finder.hit(ids)
    assert finder.cut(prompt, ids) == ("", True)
    assert finder.cut(prompt[:1], ids) == ("", True)


def test_a_prompt_that_ends_inside_a_character(llama):
    ids = llama.encode("好 x")
    cut = [i for i, id in enumerate(ids) if llama.pieces[id] == BROKEN][1]
    assert llama.decode_completion(ids[:cut], ids[cut:]) == "好 x"
    assert StopStrings(llama, "x").cut(ids[:cut], ids[cut:])[1]


# -- errors ------------------------------------------------------------------


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no tokenizer: {tmp_path}/tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_refused_files_are_named(data, folder):
    with pytest.raises(ValueError, match=r"swift_transformers/tokenizer\.json is not a tokenizer"):
        Tokenizer.load(data / "tokenizers" / "swift_transformers")
    for text, message in [("{", "is not JSON"), ("[]", "must hold a JSON object, got list"),
                          ("[" * 100_000, "is not JSON")]:
        write(folder, "tokenizer_config.json", text)
        with pytest.raises(ValueError, match=f"tokenizer_config.json {message}"):
            Tokenizer.load(folder)


def test_mutated_files_load_or_give_a_value_error(data, tmp_path):
    source = (data / "ckpt" / "aidreams260K" / "tokenizer.json").read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        mutated = bytearray(source)
        for _ in range(rng.choice([1, 1, 2, 8])):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        end = rng.choice([None, None, len(source) // 2])
        (tmp_path / "tokenizer.json").write_bytes(mutated[:end])
        with contextlib.suppress(ValueError):
            tokenizer = Tokenizer.load(tmp_path)
            tokenizer.decode(tokenizer.encode("Hello, world! 你好"))


@pytest.mark.parametrize(("text", "error", "message"), [
    (b"bytes", TypeError, "text must be a str, got bytes"),
    ("\ud800", ValueError, "the text cannot be tokenized"),
])
def test_encode_refuses_what_is_no_text(bpe, text, error, message):
    with pytest.raises(error, match=message):
        bpe.encode(text)


@pytest.mark.parametrize(("ids", "error", "message"), [
    ([1.5], TypeError, r"one row of integers, got shape \(1,\) of float64"),
    ([[1]], TypeError, r"got shape \(1, 1\)"),
    (["a"], TypeError, "one row of integers"),
    ([True], TypeError, "one row of integers"),
    ([-1], ValueError, "token ids must be >= 0, got -1"),
    ([2**40], ValueError, "cannot be decoded"),
])
def test_decode_refuses_what_are_no_ids(bpe, ids, error, message):
    with pytest.raises(error, match=message):
        bpe.decode(ids)


@pytest.mark.parametrize(("stops", "error", "message"), [
    ([""], ValueError, "stop_strings must not be empty, got ''"),
    ([1], TypeError, "stop_strings must be str, got int"),
])
def test_stop_strings_refuse_what_is_none(bpe, stops, error, message):
    with pytest.raises(error, match=message):
        StopStrings(bpe, stops)
