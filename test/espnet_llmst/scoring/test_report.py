"""llmst_report: what the page holds, and the page itself in headless Chromium."""

import base64
import fcntl
import hashlib
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile

from espnet_llmst.bin import llmst_report, llmst_score
from espnet_llmst.cli import run
from espnet_llmst.scoring.curves import training_curves
from espnet_llmst.scoring.decodes import Sources, load
from espnet_llmst.scoring.report import build_data, render_page

NASTY = "</script><img src=x onerror=\"document.title='broken'\"> <b>&amp; \u2028 'x'"
REF = [f"Die kleine Katze {i} schläft heute im Garten." for i in range(60)]
POOR = [line.replace("Katze", "Maus") if i % 2 else "" if i == 4 else line for i, line in enumerate(REF)]
FAIR = [NASTY if i == 7 else line.replace("Garten", "Haus") if i % 5 == 3 else line for i, line in enumerate(REF)]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
EPOCH = """[vm] 2026-11-20 15:36:57,168 (trainer:811) INFO: {0}epoch:train:1-5batch: loss={1}, acc=0.5, train_time=1.011
[vm] 2026-11-20 15:36:57,169 (trainer:811) INFO: {0}epoch:train:6-10batch: loss={2}, acc=0.6, train_time=1.011
[vm] 2026-11-20 15:38:32,079 (trainer:394) INFO: {0}epoch results: [train] loss=9.9, acc=0.55, \
time=2 minutes and 18.16 seconds, total_count={3}, [valid] loss={4}, acc=7.000e-01, time=7.32 seconds, total_count=13
"""


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"utt{i:02d} {line}\n" for i, line in enumerate(lines)), encoding="utf-8")


def tone(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(int(16000 * seconds)) * 0.1), 16000)


def decode(method, hyps, set_name="test.en-de"):
    folder = f"exp/{method}/1_all/decode_beam5/{set_name}"
    write(Path(folder) / "1best_recog" / "text", hyps)
    data = f"dump/raw/{set_name}"
    options = (
        f"--hyp {folder}/1best_recog/text --ref {data}/text.tc.de --tgt_lang de --metrics BLEU chrF2 --set {set_name}"
    )
    assert (
        run(llmst_score.main, f"{options} --durations {data}/utt2num_samples --out {folder}/scores.json".split()) == 0
    )
    return Path(folder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe with two scored methods; audio is linked by relative and absolute paths, and missing once."""
    root, before = tmp_path_factory.mktemp("a recipe"), Path.cwd()
    os.chdir(root)
    data = root / "dump" / "raw" / "test.en-de"
    write(data / "text.tc.de", REF)
    write(data / "text.tc.en", [f"The small cat {i} sleeps in the garden today." for i in range(60)])
    write(data / "utt2num_samples", [16000 + 1000 * i for i in range(60)])
    for i in range(60):
        if i != 9:
            tone(root / "audio #1" / f"{i}.flac", 1 + i / 16)
    write(data / "wav.scp", [f"{root if i % 2 else '.'}/audio #1/{i}.flac" for i in range(60)])
    decode("poor", POOR)
    folder = decode("fair", FAIR)
    (folder / "scores_shuffled.json").write_text('{"BLEU": {"score": 1.5}}')
    log = "".join(EPOCH.format(e, 3 / e, 2 / e, 10 * e, 2.5 / e) for e in (1, 2))
    (root / "exp" / "fair" / "1_all" / "train.log").write_text(log)
    yield root
    os.chdir(before)


@pytest.fixture(scope="module")
def data(recipe):
    decodes = [load(f"exp/{name}", Sources()) for name in ("poor", "fair")]
    return build_data(*decodes, folder=recipe, buckets="2,3", embed=3, command="me")


def test_data_of_two_systems(data):
    (view,) = data["views"]
    assert data["title"] == "poor/1_all and fair/1_all" and data["compared"]
    assert view["systems"] == ["poor/1_all/beam5", "fair/1_all/beam5"] and view["hyps"] == [POOR, FAIR]
    assert view["source"][3] == "The small cat 3 sleeps in the garden today." and view["seconds"][16] == 2.0
    rows = [(row["system"], row["name"], row["n"], row["control"]) for row in data["table"]]
    assert rows == [(0, "poor/1_all/beam5", 60, None), (1, "fair/1_all/beam5", 60, 1.5)]
    assert set(data["table"][0]["scores"]) == {"BLEU", "chrF2"} and "ci95" in data["table"][0]["scores"]["BLEU"]
    assert [name for name, text in data["signatures"] if "version:" in text] == ["BLEU", "chrF2"]
    points = view["buckets"][0]
    assert [point["note"] for point in points] == ["(0-2s, n = 16)", "(2-3s, n = 16)", "(3s+, n = 28)"]
    assert points[0]["x"] == pytest.approx(np.mean([1 + i / 16 for i in range(16)]), abs=1e-3)
    assert points[0]["low"] < points[0]["y"] < points[0]["high"]
    assert view["tests"]["BLEU"]["verdict"] == "B better" and view["tests"]["BLEU"]["p_bootstrap"] < 0.05


def test_audio_is_embedded_where_the_page_begins_and_linked_elsewhere(data, recipe):
    (view,) = data["views"]
    change = [abs(b - a) for a, b in zip(*view["chrf"], strict=True)]
    embedded = [i for i, url in enumerate(view["audio"]) if url.startswith("data:audio/flac;base64,")]
    assert sorted(embedded) == sorted(sorted(range(60), key=lambda i: -change[i])[:3])
    content = base64.b64decode(view["audio"][embedded[0]].split(",")[1])
    assert content == (recipe / "audio #1" / f"{embedded[0]}.flac").read_bytes()
    assert [i for i, url in enumerate(view["audio"]) if not url] == [9]
    assert view["audio"][11] == "audio%20%231/11.flac"


def test_links_hold_from_another_folder_and_absolute(recipe):
    decodes = load("exp/poor", Sources())
    for absolute in (False, True):
        (view,) = build_data(decodes, [], folder=recipe / "x" / "y", embed=0, absolute=absolute)["views"]
        assert Path(os.path.normpath(recipe / "x" / "y" / unquote(view["audio"][2]))).samefile(
            recipe / "audio #1/2.flac"
        )
        assert view["audio"][2].startswith("/") == absolute and len(view["hyps"]) == 1 and not view["tests"]


def test_audio_in_an_archive_is_embedded_as_flac(recipe):
    import kaldiio

    samples = (1000 * np.sin(np.arange(8000) * 0.1)).astype("int16")
    kaldiio.save_ark("x.ark", {"utt00": (16000, samples)}, scp="x.scp")
    (original,) = load("exp/poor", Sources())
    folder = recipe / "ark"
    shutil.copytree(original.data_dir, folder)
    (folder / "wav.scp").write_text(Path("x.scp").read_text())
    (view,) = build_data([original._replace(data_dir=folder)], [], folder=recipe, embed=60)["views"]
    assert [i for i, url in enumerate(view["audio"]) if url] == [0]
    (recipe / "x.flac").write_bytes(base64.b64decode(view["audio"][0].split(",")[1]))
    read, rate = soundfile.read("x.flac", dtype="int16")
    assert rate == 16000 and np.array_equal(read, samples)


def test_curves_of_a_log(recipe):
    curves = training_curves("exp/fair/1_all")
    assert curves["source"] == "exp/fair/1_all/train.log" and set(curves["series"]) == {"loss", "acc"}
    assert curves["series"]["loss"]["train"] == [[5, 3], [10, 2], [15, 1.5], [20, 1]]
    assert curves["series"]["loss"]["valid"] == [[10, 2.5], [20, 1.25]]
    assert curves["series"]["acc"]["valid"] == [[10, 0.7], [20, 0.7]]
    assert training_curves("exp/poor/1_all") is None


def test_curves_of_events_come_first(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def add(part, values):
        writer = EventFileWriter(str(tmp_path / "tensorboard" / part))
        for tag, step, value in values:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(summary=summary, step=step, wall_time=step))
        writer.close()

    ends = [("iter_epoch", 999, 1), ("loss", 999, 99)]
    add("train", [("loss", step, float(step)) for step in range(1, 1000)] + ends)
    add("valid", [("loss", 1000, 0.5)])
    (tmp_path / "train.log").write_text(EPOCH.format(1, 3, 2, 10, 1))
    series = training_curves(tmp_path)["series"]
    assert series["loss"]["valid"] == [[1000, 0.5]]
    train = series["loss"]["train"]
    assert len(train) == 333 and train[0] == [3, 2.0] and train[-1] == [999, 998.0]


def test_page_is_self_contained_and_safe(data):
    page = render_page(data)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert page.count("<script") == page.count("</script") == 2 and 'onerror=\\"' in page and "<img" not in page
    policy = re.search(r"default-src 'none';.*script-src 'sha256-([^']+)'", page)[1]
    script = page.split("<script>")[1].split("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == policy
    stored = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(stored)["views"][0]["hyps"][1][7] == NASTY
    assert "<title>A &amp; B&lt;/title&gt;" in render_page({**data, "title": "A & B</title>"})


def test_command(recipe, capsys):
    assert run(llmst_report.main, "exp/poor --compare exp/fair --out out/report.html --embed_audio 2".split()) == 0
    out = capsys.readouterr().out
    assert "out/report.html: 2 decodes, 60 utterances" in out and "no audio for 1 of 60" in out
    assert (recipe / "out" / "report.html").read_text(encoding="utf-8").count("data:audio/flac") == 2
    options = "--ref dump/raw/test.en-de/text.tc.de --tgt_lang de --out out/plain.html"
    assert run(llmst_report.main, f"exp/poor/1_all/decode_beam5/test.en-de/1best_recog/text {options}".split()) == 0


def test_bad_input(recipe, capsys):
    def error_of(text):
        assert run(llmst_report.main, text.split()) == 1
        lines = capsys.readouterr().err.strip().split("\n")
        assert len(lines) == 1
        return lines[0]

    assert "nowhere: no such file" in error_of("nowhere")
    assert "rising list" in error_of("exp/poor --buckets best")
    write(recipe / "dump/raw/other.en-de/text.tc.de", REF)
    write(recipe / "dump/raw/other.en-de/utt2num_samples", [16000] * 60)
    decode("third", POOR, "other.en-de")
    assert "have no set in common" in error_of("exp/poor --compare exp/third")


# ---- in a browser


class Page:
    """A page in headless Chromium, driven through its debugging pipe; `value` gives what JavaScript returns."""

    FLAGS = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --remote-debugging-pipe --window-size=1280,900 "
        "--autoplay-policy=no-user-gesture-required --mute-audio"
    )

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (low_read, in_write), (out_read, low_write) = os.pipe(), os.pipe()
        # the browser reads commands from descriptor 3 and answers on 4: what becomes them must not be one of them
        in_read, out_write = (fcntl.fcntl(low, fcntl.F_DUPFD, 30) for low in (low_read, low_write))
        shell = f'exec "$@" 3<&{in_read} 4>&{out_write}'
        command = ["bash", "-c", shell, "bash", CHROMIUM, *self.FLAGS.split(), f"--user-data-dir={self.profile.name}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, "about:blank"], pass_fds=(in_read, out_write), **quiet)
        for descriptor in (low_read, low_write, in_read, out_write):
            os.close(descriptor)
        self.write, self.read, self.buffer = open(in_write, "wb", buffering=0), out_read, b""
        self.numbers, self.events, self.session = itertools.count(1), [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        self.write.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _message(self):
        while b"\0" not in self.buffer:
            assert select.select([self.read], [], [], 120)[0], "the browser does not answer"
            part = os.read(self.read, 1 << 16)
            assert part, "the browser ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return message

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        self.wait("document.readyState === 'complete' && !!document.querySelector('#list tbody tr')")

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=60):
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def search(self, text):
        event = "dispatchEvent(new Event('input'))"
        self.value(
            f"(() => {{ const s = document.getElementById('search'); s.value = {json.dumps(text)}; s.{event}; }})()"
        )
        time.sleep(0.3)

    def column(self, selector):
        return self.value(f"Array.from(document.querySelectorAll('#list tbody {selector}'), (n) => n.textContent)")

    def complaints(self):
        """Console errors, exceptions, and requests to anything but files and data."""
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        wrong = [url for url in urls if not url.startswith(("file:", "data:"))]
        names = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [e for e in self.events if e.get("method") in names] + wrong

    def close(self):
        self.process.kill()
        self.process.wait()
        self.write.close()
        os.close(self.read)
        self.profile.cleanup()


@pytest.fixture(scope="module")
def page():
    if CHROMIUM is None:
        pytest.skip("no Chromium found (Debian: apt-get install chromium): the page was not opened")
    page = Page()
    yield page
    page.close()


@pytest.fixture
def opened(page, data, recipe):
    path = recipe / "report.html"
    path.write_text(render_page(data), encoding="utf-8")
    page.open(path)
    return page


def test_page_shows_scores_and_charts(opened):
    table = opened.value("document.getElementById('scores').textContent")
    assert "poor/1_all/beam5" in table and "BLEU" in table and "–" in table
    assert "B better" in opened.value("document.getElementById('tests').textContent")
    assert "case:mixed|eff:no|tok:13a" in opened.value("document.getElementById('signatures').textContent")
    titles = "Array.from(document.querySelectorAll('.chart h3'), (n) => n.textContent)"
    assert opened.value(titles) == ["BLEU by duration", "Training: loss", "Training: acc"]
    assert opened.value("document.querySelectorAll('.chart')[0].querySelectorAll('circle').length") == 6
    assert "NaN" not in opened.value("document.getElementById('charts').innerHTML")
    assert opened.complaints() == []


def test_search_filter_and_pages(opened):
    assert opened.value("document.getElementById('count').textContent") == "60 of 60"
    assert len(opened.column("tr")) == 50
    opened.value("Array.from(document.querySelectorAll('#pages button')).find((b) => b.textContent === 'Next').click()")
    assert len(opened.column("tr")) == 10
    opened.search("maus KATZE 11")
    assert opened.column(".id") == ["utt11"]
    opened.search("utt2")
    assert sorted(opened.column(".id")) == [f"utt{i}" for i in range(20, 30)]
    opened.search("")
    choose = "const f = document.getElementById('filter'); f.value = '{}'; f.dispatchEvent(new Event('change'))"
    opened.value(f"{{ {choose.format('empty')} }}")
    assert opened.column(".id") == ["utt04"]
    opened.value(f"{{ {choose.format('worse')} }}")
    worse = [i for i in range(60) if i % 5 == 3 and i % 2 == 0]
    assert sorted(opened.column(".id")) == sorted(f"utt{i:02d}" for i in [*worse, 7])
    opened.search("nothing like this")
    assert opened.column("tr") == [] and opened.value("document.getElementById('count').textContent") == "0 of 60"


def test_sort(opened, data):
    click = "document.querySelector('[data-sort=\"{}\"]').click()"
    for key, column in (("s", 3), ("chrf0", 4), ("gain", 6)):
        opened.value(click.format(key))
        numbers = [float(text.replace("−", "-").replace("±", "")) for text in opened.column(f"td:nth-child({column})")]
        assert numbers == sorted(numbers) and numbers[0] < numbers[-1]
        opened.value(click.format(key))
        numbers = [float(text.replace("−", "-").replace("±", "")) for text in opened.column(f"td:nth-child({column})")]
        assert numbers == sorted(numbers, reverse=True)
        assert opened.value("document.querySelector('[aria-sort=descending]').textContent").endswith("↓")
    opened.value(click.format("id"))
    assert opened.column(".id") == [f"utt{i:02d}" for i in range(50)]


def test_differences_are_marked_word_by_word(opened):
    opened.search("utt13")
    assert opened.value("document.querySelector('#list tbody .ref u.a').textContent") == "Katze"
    assert opened.value("document.querySelector('#list tbody .ref u.b').textContent") == "Garten"
    marks = "Array.from(document.querySelectorAll('#list tbody mark'), (n) => n.className + ' ' + n.textContent)"
    assert opened.value(marks) == ["a Maus", "b Haus"]
    hyps = opened.column(".hyp > span:last-child")
    assert hyps == [POOR[13], FAIR[13]] and opened.column(".ref > span:last-child") == [REF[13]]
    opened.search("utt04")
    assert opened.column(".hyp > span:last-child") == ["empty", FAIR[4]]


def test_text_stays_text(opened):
    opened.search("utt07")
    assert opened.column(".hyp > span:last-child")[1] == NASTY
    assert opened.value("document.querySelectorAll('img, #list b').length") == 0
    assert opened.value("document.title") == "poor/1_all and fair/1_all" and opened.complaints() == []


def test_audio_plays(opened):
    assert opened.value("document.querySelectorAll('.play').length") in (49, 50)  # all but utt09
    embedded = opened.column(".id")[0]
    for utt in (embedded, "utt01", "utt02"):  # inside the page; linked by an absolute and by a relative path
        opened.search(utt)
        opened.value("document.querySelector('.play').click()")
        opened.wait("document.getElementById('audio').duration > 0", 20)
        seconds = opened.value("document.getElementById('audio').duration")
        assert seconds == pytest.approx(1 + int(utt[3:]) / 16, abs=0.05)
        assert opened.value("document.getElementById('playing').textContent") == utt
        assert not opened.value("document.getElementById('player').hidden")
    assert opened.complaints() == []
    opened.search("utt09")
    assert opened.value("document.querySelector('.play')") is None


def test_three_thousand_utterances_stay_fast(page, data, tmp_path):
    view = dict(data["views"][0])
    for name in ("ids", "seconds", "source", "audio"):
        view[name] = [f"{value}x{k}" if name == "ids" else value for k in range(50) for value in view[name]]
    for name in ("ref", "hyps", "chrf"):
        view[name] = [column * 50 for column in view[name]]
    (tmp_path / "big.html").write_text(render_page({**data, "views": [view]}), encoding="utf-8")
    page.open(tmp_path / "big.html")
    assert page.value("document.getElementById('count').textContent") == "3000 of 3000"
    clock = "(() => {{ const t = performance.now(); {}; return performance.now() - t; }})()"
    assert page.value(clock.format("document.querySelector('[data-sort=\"chrf1\"]').click()")) < 1000
    page.search("utt13x4")
    assert page.value("document.getElementById('count').textContent") == "11 of 3000"
    assert len(page.column("tr")) == 11


def test_one_system_and_several_decodes(page, data, recipe):
    decodes = load("exp/poor", Sources()) + load("exp/fair", Sources())
    (recipe / "one.html").write_text(render_page(build_data(decodes, [], folder=recipe, embed=0)), encoding="utf-8")
    page.open(recipe / "one.html")
    assert page.value("document.getElementById('view').options.length") == 2
    assert page.column(".hyp .tag")[0] == "hyp" and page.column(".id")[0] == "utt04"
    page.value("{ const v = document.getElementById('view'); v.value = '1'; v.dispatchEvent(new Event('change')) }")
    assert page.column(".id")[0] == "utt07" and page.complaints() == []


def test_chinese_is_compared_by_characters(page, data, tmp_path):
    view = {**data["views"][0], "unspaced": True, "ids": ["a"], "seconds": None, "source": None, "audio": [""]}
    view |= {"ref": [["今天天气很好。"]], "hyps": [["今天天氣好。"], ["今天天气很好。"]], "chrf": [[1], [2]]}
    (tmp_path / "zh.html").write_text(render_page({**data, "views": [view]}), encoding="utf-8")
    page.open(tmp_path / "zh.html")
    assert page.column("u") == ["气很"] and page.column("mark") == ["氣"]


def test_start_up_is_light():
    code = "import sys, espnet_llmst.bin.llmst_report as m; m.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
