"""What users and accidents do, a test a kind: nothing is silent, nothing is lost, nothing lands outside."""

import csv
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, at_step, checkpoint, interrupt, picture, rows_of, same_weights, write_category
from PIL import Image
from test_layouts import chunk, encoded, visa
from test_train import arguments

import adref.data.__main__ as check
from adref import evaluate, load, predict, synthesize, train
from adref.data import reader
from adref.methods.draem import DRAEM
from adref.run import directory, evaluation
from adref.run.cli import Stream
from adref.run.files import csv_text, new_folder, safe_name


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    """A copy of a finished run, whose data lie beside the original."""
    return shutil.copytree(small_run, tmp_path / "run")


def test_a_picture_is_its_path_not_its_name(run, tmp_path, capsys):
    """Two folders hold the same names; one of the pictures has another size."""
    rows = ["object,split,label,image,mask"]
    for k, size in enumerate([(40, 48), (30, 60)]):
        for label, name in (("normal", "0.png"), ("normal", "0.bmp"), ("anomaly", "1.png")):
            image = save(tmp_path / f"d/day{k}/{name}", picture(9 + k, *size)).relative_to(tmp_path / "d")
            mask = save(tmp_path / f"d/masks{k}/{name}", np.eye(*size, dtype=np.uint8)).relative_to(tmp_path / "d")
            rows.append(f"part,test,{label},{image},{mask if label == 'anomaly' else ''}")
    (tmp_path / "d/split_csv").mkdir()
    (tmp_path / "d/split_csv/1cls.csv").write_text("\n".join(rows))
    assert evaluate.main([str(run), "--data", str(tmp_path / "d"), "--device", "cpu"]) == 0
    names = [row["path"] for row in rows_of(run / "evaluation/scores.csv")]
    assert names == [f"day{k}/{name}" for k in (0, 1) for name in ("0.bmp", "0.png", "1.png")]
    for name in names:
        assert np.load(run / f"evaluation/maps/{name}.npy").shape == ((40, 48) if "day0" in name else (30, 60))
        assert name in (run / "report.html").read_text()
    assert predict.main([str(run), *(str(tmp_path / f"d/day{k}") for k in (0, 1)), "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.relative_to(tmp_path / "out/maps").as_posix()[:-4] for p in tmp_path.glob("out/maps/*/*")) == names


def test_what_lies_beside_the_categories_is_named_once(data, textures, tmp_path, capsys):
    (data / "readme.txt").touch()
    for name in ("first", "second"):
        assert train.main(arguments(data, textures, tmp_path / name)) == 0
        assert capsys.readouterr().err.count("1 entries are no categories: readme.txt") == 1


def test_what_is_left_out_is_named(run, tmp_path, capsys):
    folder = tmp_path / "pictures"
    for name in ("a.jfif", "b.JPE", "c.ppm", "d.gif", "e.jp2"):
        kind = {"a.jfif": "JPEG", "b.JPE": "JPEG"}.get(name)
        save(folder / name, picture(1), format=kind)
    for name in ("@eaDir/a.jpg", "more.tga", "deep/.b.png"):
        save(folder / name, picture(2))
    (folder / "linked").symlink_to(run)
    assert predict.main([str(run), str(folder), "--out", str(tmp_path)]) == 0  # above the pictures
    said = capsys.readouterr().err
    assert len(rows_of(tmp_path / "scores.csv")) == 5
    assert f"{folder}: 4 entries are left out: @eaDir, .b.png, linked, more.tga" in said
    assert predict.main([str(run), str(folder / "deep"), "--out", str(tmp_path / "none")]) == 2
    assert "deep: holds no images" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert check.main([str(write_category(tmp_path / "data"))]) == 0 and "hidden" not in capsys.readouterr().out
    save(tmp_path / "data/part/test/good/@eaDir/000.png", picture(3))
    assert check.main([str(tmp_path / "data")]) == 0
    assert "note" in (said := capsys.readouterr().out) and "hidden entries are not read: @eaDir" in said


SHAPE = np.zeros((40, 48), bool)
SHAPE[10:22, 14:28] = True
GREY = np.clip(np.hypot(*np.mgrid[-20:20, -24:24]) * -20 + 255, 0, 255).astype(np.uint8)
WHITE = np.dstack([np.full((40, 48, 3), 255, np.uint8), SHAPE * np.uint8(255)])
PALETTE = Image.fromarray(SHAPE.astype(np.uint8), "P")
PALETTE.putpalette([250, 250, 250, 200, 0, 0])
MASKS = {"inverted": (~SHAPE * np.uint8(255), "91 % to 91 %.*WARNING: .* more than half"),
         "all": (np.full((40, 48), 255, np.uint8), "1e.02 % to 1e.02 %.*more than half"),
         "palette": (PALETTE, "more than half"),
         "soft": (GREY, "WARNING: 1 masks have grey levels"),
         "alpha": (WHITE, r"masks of part: 8\.8 % to 8\.8 %"),
         "class ids": (SHAPE * np.uint8(7), r"masks of part: 8\.8 % to 8\.8 %")}  # fmt: skip


@pytest.mark.parametrize("kind", MASKS)
def test_masks_that_cannot_be_right_are_told(kind, run, tmp_path, capsys):
    data = write_category(tmp_path / "data", defects=1)
    mask, words = MASKS[kind]
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    mask.save(data / "part/ground_truth/spot/000_mask.png")
    for main, given in ((check.main, [data]), (evaluate.main, [run, "--data", data, "--device", "cpu"])):
        assert main(list(map(str, given))) == 0
        text = capsys.readouterr().out.replace("\n", " ")
        assert re.search(words, text), text
        assert ("WARNING" in text) == ("WARNING" in words or "half" in words)


@pytest.mark.parametrize(("kind", "more"), [("JPEG", {}), ("WEBP", {}), ("TIFF", {"compression": "jpeg"}),
                                            ("JPEG2000", {"irreversible": True})])  # fmt: skip
def test_lossy_masks_are_known_by_their_content(kind, more, tmp_path):
    save(tmp_path / "m.png", SHAPE * np.uint8(255), format=kind, **more)
    with pytest.raises(reader.UserError, match=rf"m\.png: a {kind} mask"):
        reader.read_mask(tmp_path / "m.png")
    if kind != "JPEG":
        lossless = {"WEBP": {"lossless": True}}.get(kind, {})
        save(tmp_path / "m.jpg", SHAPE * np.uint8(255), format=kind, **lossless)
        assert np.array_equal(reader.read_mask(tmp_path / "m.jpg"), SHAPE)


def test_another_test_set_in_another_place(run, small_run, tmp_path, monkeypatch, capsys):
    later = shutil.copytree(small_run.parent / "data/part", tmp_path / "june/part_2")
    shutil.rmtree(later / "train")
    before = json.loads((run / "evaluation/metrics.json").read_text())
    for place in (later, later.parent):
        assert evaluate.main([str(run), "--data", str(place), "--device", "cpu"]) == 0
        assert "the category part_2 is taken for part" in capsys.readouterr().err
        after = json.loads((run / "evaluation/metrics.json").read_text())
        assert after["image_auroc"] == before["image_auroc"] and after["test_digest"] == before["test_digest"]
    shutil.copytree(later, later.parent / "part_3")
    assert evaluate.main([str(run), "--data", str(later.parent), "--device", "cpu"]) == 2  # which of the two?
    data = shutil.copytree(small_run.parent / "data", tmp_path / "data")
    with monkeypatch.context() as patch:
        at_step(patch, DRAEM, 3, interrupt)
        assert train.main(arguments(data, small_run.parent / "data/part/test/good", tmp_path / "half")) == 130
    (data / "part").rename(data / "renamed")
    data = data.rename(tmp_path / "moved")
    assert train.main(["--resume", "--out", str(tmp_path / "half"), "--data", str(data)]) == 0
    assert train.main(["--resume", "--out", str(run), "--data", str(data)]) == 0
    assert train.main([*arguments(data, "x", tmp_path / "new"), "--category", "part"]) == 2  # a new run is exact


NAMES = [os.fsdecode(b"\xff\xfe caf\xe9.png"), "n" * 251 + ".png", unicodedata.normalize("NFD", "é.png"), "é.png",
         "a\rb.png", "=1+1.png", "-2.png", ' "q",\t<b>&.png']  # fmt: skip


@pytest.mark.parametrize("locale", ["", "C"])
def test_names_of_any_bytes(locale, small_run, textures, tmp_path):
    """Under another locale, too, a run can be read that was trained under UTF-8."""
    data = tmp_path / os.fsdecode(b"Pr\xfcfung")
    write_category(data)
    root = (data / "part").rename(data / os.fsdecode(b"Geh\xe4use \xc3\xa4"))
    for i, name in enumerate(NAMES):
        save(root / "test/good" / name, picture(100 + i))
    assert train.main(arguments(data, textures, tmp_path / "real")) == 0
    env = {**os.environ, "PYTHONCOERCECLOCALE": "0", **({"LC_ALL": "C", "PYTHONUTF8": "0"} if locale else {})}
    run, out = tmp_path / "real", tmp_path / "o"
    for words in (["evaluate", run], ["predict", run, root / "test", "--out", out], ["data", data],
                  ["predict", run, root / "test", "--out", "-"]):  # fmt: skip
        command = [sys.executable, "-m", *map(os.fsencode, (f"adref.{words[0]}", *map(str, words[1:])))]
        done = subprocess.run(command, env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(os.fsdecode((tmp_path / "o/scores.csv").read_bytes()), newline="")))
    assert {Path(row["path"]).name for row in rows} >= set(NAMES) and len(rows) == 6 + len(NAMES)


def test_csv_of_names_that_a_spreadsheet_would_compute():
    text = csv_text([["=1+1", "-2", -2.5, "-a", "a\rb", "@x", "+y", 3]])
    assert next(csv.reader(io.StringIO(text, newline=""))) == ["'=1+1", "-2", "-2.5", "'-a", "a\rb", "'@x", "'+y", "3"]


def test_one_call_of_another_program(small_run, tmp_path):
    run, pixels = load(small_run), picture(7, 100, 90)
    path = save(tmp_path / "a.png", pixels)
    found = run.predict(path)
    assert found.map.shape == (100, 90) and found.decision == ("anomalous" if found.score >= run.threshold else "good")
    assert predict.main([str(small_run), str(path), "--out", str(tmp_path / "o"), "--device", "cpu"]) == 0
    assert repr(found.score) == rows_of(tmp_path / "o/scores.csv")[0]["score"]
    many = []
    thread = threading.Thread(target=lambda: many.extend(run.predict([str(path), Image.open(path), pixels])))
    thread.start()
    thread.join()
    assert len(many) == 3 and all(p.score == found.score and np.array_equal(p.map, found.map) for p in many)
    for wrong in (pixels / 255.0, pixels[..., 0], pixels[..., :2], torch.zeros(3, 4, 4)):
        with pytest.raises(ValueError, match=r"expected a path, a PIL image or RGB as uint8 \(H, W, 3\); got "):
            run.predict(wrong)
    images = torch.from_numpy(pixels[:64, :64] / 255.0).permute(2, 0, 1)[None]
    with torch.inference_mode():
        scores = [run.method.score(images.to(kind))[0].item() for kind in (torch.float64, torch.float32, torch.float16)]
    assert scores[0] == scores[1] == pytest.approx(scores[2], abs=1e-2)


def test_training_in_a_thread_and_without_streams(data, textures, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # as a notebook's: no reconfigure, no fileno
    codes = []
    thread = threading.Thread(target=lambda: codes.append(train.main(arguments(data, textures, tmp_path / "run"))))
    thread.start()
    thread.join()
    assert codes == [0] and "masks of part" not in sys.stderr.getvalue()


@pytest.mark.parametrize("flag", ["-OO", "-Werror", "-bb"])
def test_interpreter_flags_and_closed_pipes(flag, small_run):
    command = f'"{sys.executable}" {flag} -m adref.predict "{small_run}" "{small_run.parent}/data" --out -'
    done = subprocess.run(["sh", "-c", f"({command}; echo $? >&3) 3>&1 1>&- 2>&-"], capture_output=True, check=False)
    assert done.stdout == b"0\n", done
    done = subprocess.run(["sh", "-c", f"({command}; echo $? >&2) | true"], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "0" and "Traceback" not in done.stderr


def test_a_full_disk_behind_stdout_is_no_closed_pipe():
    with pytest.raises(OSError, match="No space left") as error:
        Stream(io.TextIOWrapper(open("/dev/full", "wb", buffering=0))).write("a\n")  # noqa: SIM115
    assert error.value.filename == "/dev/full"


def test_an_empty_folder_is_filled_not_replaced(small_run, textures, data, tmp_path):
    """A mounted volume can be neither renamed nor removed; its parent may be read-only."""
    words = {"run": (train.main, arguments(data, textures, tmp_path / "run")),
             "seen": (synthesize.main, ["draem", "--data", str(data), "--textures", str(textures), "--out",
                                        str(tmp_path / "seen"), "--n", "2", "--size", "64,64"]),
             "scored": (predict.main, [str(small_run), str(data), "--out", str(tmp_path / "scored")])}  # fmt: skip
    for name, (main, given) in words.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "lost+found").mkdir()
        inode, around = (tmp_path / name).stat().st_ino, sorted(tmp_path.iterdir())
        assert main(given) == 0
        assert (tmp_path / name).stat().st_ino == inode and sorted(tmp_path.iterdir()) == around
        assert not [entry for entry in (tmp_path / name).iterdir() if entry.name.endswith((".tmp", ".partial"))]


def test_size_and_text_of_a_picture_do_not_stop_it(tmp_path, monkeypatch):
    text = b"".join(chunk(kind, b"a\0\0" + zlib.compress(bytes(1 << 27))) for kind in (b"iCCP", b"zTXt"))
    whole = encoded("PNG", Image.fromarray(picture(3)))
    (tmp_path / "a.png").write_bytes(whole[:33] + text + whole[33:])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert np.array_equal(reader.read_image(tmp_path / "a.png"), picture(3)) and Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.slow
def test_memory_of_a_prediction_is_about_12_bytes_a_pixel(small_run, tmp_path):
    peaks, command = [], "import resource, sys; from adref import predict; code = predict.main(sys.argv[1:]); "
    command += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"
    for side, mode in ((64, "RGB"), (5000, "RGB"), (5000, "RGBA")):
        path = save(tmp_path / f"{side}.png", np.full((side, side, 3), 99, np.uint8), mode)
        words = [sys.executable, "-c", command, str(small_run), str(path), "--out", str(tmp_path / "o")]
        peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1]))
    assert all(peak - peaks[0] < 13 * 5000**2 + 2**26 for peak in peaks[1:]), peaks


@pytest.mark.slow
def test_two_commands_at_once(small_run, textures, data, tmp_path):
    def both(*words) -> list[int]:
        words = [sys.executable, "-m", *map(str, words)]
        started = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
        return sorted(process.wait() for process in started)

    assert both("adref.train", *arguments(data, textures, tmp_path / "run")) == [0, 2]
    assert load(tmp_path / "run").state.finished
    assert both("adref.predict", small_run, data, "--out", tmp_path / "out") == [0, 0]
    assert len([p for p in (tmp_path / "out").rglob("*") if p.is_file()]) == 2 * len(list(data.rglob("*.png"))) + 1


def test_a_file_that_changes_is_noticed_and_a_hash_is_of_what_was_read(run, small_run, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(small_run.parent / "data", tmp_path / "data")
    for name in ("test/good/001.png", "ground_truth/spot/000_mask.png"):
        before, real = (data / "part" / name).read_bytes(), evaluation.check_files

        def checked(records, name=name, real=real):
            found = real(records)
            save(data / "part" / name, picture(5, 20, 30))
            return found

        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "check_files", checked)
            assert evaluate.main([str(run), "--data", str(data), "--device", "cpu"]) == 2
        assert f"{data / 'part' / name} has changed since the command began" in capsys.readouterr().err
        (data / "part" / name).write_bytes(before)
    first = load(run).sha256

    def opened(path, *more, real=torch.load, **options):
        if not (run / "old.pt").exists():
            (run / "checkpoint.pt").rename(run / "old.pt")  # a training run saves meanwhile
            (run / "checkpoint.pt").write_bytes(b"another")
        return real(path, *more, **options)

    monkeypatch.setattr(directory.torch, "load", opened)
    assert load(run).sha256 == first


def test_no_name_leads_out_of_a_folder(run, small_run, textures, tmp_path, capsys):
    for name in ("", ".", "..", "../../x", "/abs", "a/b", "a\\b", "n" * 300, "\0"):
        made = safe_name(name)
        assert made and not set(made) & set("/\\\0") and made[0] != "." and len(made) < 100
    assert len({safe_name(name) for name in ("a/b", "a_b", "a\\b", "..", "__")}) == 5
    root = visa(tmp_path / "visa", extra="../../out,train,normal,extra.JPG,")
    (tmp_path / "work").mkdir()
    os.chdir(tmp_path / "work")
    words = ["draem", "--data", str(root), "--category", "../../out", "--textures", str(textures), *SMALL]
    assert train.main([*words, "--holdout", "0"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run", "visa", "work"}
    root = visa(tmp_path / "second", extra="candle,test,normal,../run/report.html,")
    assert check.main([str(root)]) == 2 and "expected a path below" in capsys.readouterr().out
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for name in (".lock", "metrics.jsonl", "evaluation.new", "report.html"):
        place = shutil.copytree(small_run, tmp_path / f"linked-{name}")
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(victim)
        for main, given in ((evaluate.main, [place]), (train.main, ["--resume", "--out", place])):
            assert main(list(map(str, given))) == 2
            assert f"{place / name} is a link" in capsys.readouterr().err
    assert victim.read_text() == "kept"


def test_a_flag_of_the_archive_never_changes_a_weight(run, small_run):
    """Each bit of an entry's attributes in the table at the archive's end, of which torch reads one as "folder"."""
    path, whole = run / "checkpoint.pt", (run / "checkpoint.pt").read_bytes()
    entry = whole.index(b"PK\1\2", whole.index(b"PK\1\2") + 1)
    silent = 0
    for bit in range(8):
        place = entry + 38
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            silent += not same_state(load(run).method.state_dict(), checkpoint(small_run)["model"])
        except reader.UserError as error:
            assert "checkpoint.pt is" in str(error)
    assert silent == 0


def same_state(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in b)


def test_a_second_ctrl_c_waits_for_the_save(small_run, textures, tmp_path, monkeypatch):
    def saved(content, file, real=torch.save):
        if content["step"] == 3:
            interrupt()
            interrupt()
        real(content, file)

    monkeypatch.setattr(torch, "save", saved)
    data, out = small_run.parent / "data", tmp_path / "run"
    assert train.main(arguments(data, textures, out, "--checkpoint-steps", 1)) == 130
    assert checkpoint(out)["step"] >= 3
    monkeypatch.undo()
    assert train.main(["--resume", "--out", str(out)]) == 0 and same_weights(out, small_run)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_no_worker_outlives_a_killed_training(method, data, textures, tmp_path):
    words = arguments(data, textures, tmp_path / "run", "--workers", 2, "--start-method", method, "--epochs", 9999)
    command, null = [sys.executable, "-m", "adref.train", *words], subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=null, stderr=null, start_new_session=True)
    log, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("workers are left")


@pytest.mark.slow
def test_workers_without_files_to_open(data, textures, tmp_path):
    words = " ".join(f"'{word}'" for word in arguments(data, textures, tmp_path / "run", "--workers", 2))
    command = f"ulimit -n 20; exec '{sys.executable}' -m adref.train {words}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "--workers 2 needs 128 open files, ulimit -n is 20" in done.stderr


def test_a_map_or_picture_that_is_damaged_costs_its_card_alone(run, small_run, monkeypatch):
    def damaged(method, image, rule, real=evaluation.resize_and_hash, seen=[]):  # noqa: B006
        seen.append(1)
        if len(seen) == 2:
            raise reader.UserError("001.png: truncated")
        return real(method, image, rule)

    monkeypatch.setattr(evaluation, "resize_and_hash", damaged)
    assert evaluate.main([str(run), "--device", "cpu"]) == 0
    page = (run / "report.html").read_text()
    assert page.count("<article") == 6 and page.count("001.png: truncated") == 1


def test_a_threshold_of_ones_own(small_run, tmp_path, capsys):
    words = [str(small_run), str(small_run.parent / "data/part/test"), "--out", str(tmp_path / "o"), "--threshold"]
    scores = sorted(float(row["score"]) for row in rows_of(small_run / "evaluation/scores.csv"))
    for threshold, count in ((scores[2], sum(s >= scores[2] for s in scores)), (1.5 * scores[-1], 0)):
        assert predict.main([*words, repr(threshold)]) == 0
        assert [row["decision"] for row in rows_of(tmp_path / "o/scores.csv")].count("anomalous") == count
    assert predict.main([*words, "nan"]) == predict.main([*words, "inf"]) == 2
    capsys.readouterr()
    assert predict.main([*words, "high"]) == 2 and "--threshold takes a number; got 'high'" in capsys.readouterr().err


def test_results_that_are_there_stay(run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    good = run.parent / "good"
    save(good / "0.png", picture(1))
    assert evaluate.main([str(run), "--data", str(good), "--device", "cpu"]) == 2
    assert "has no test image" in capsys.readouterr().err
    words = [str(run), str(good), "--device", "cpu"]
    assert predict.main([*words, "--out", str(run / "evaluation")]) == 2
    assert "holds a scores.csv that is no prediction" in capsys.readouterr().err
    assert all(path.read_bytes() == data for path, data in before.items())
    for name in ("maps", "overlays/good"):  # of --out, leading out of it
        out = tmp_path / f"out-{len(name)}"
        (out / name).parent.mkdir(parents=True)
        (out / name).symlink_to(run / "evaluation")
        save(tmp_path / "more/good/0.png", picture(1))
        save(tmp_path / "more/1.png", picture(2))
        assert predict.main([words[0], str(tmp_path / "more"), *words[2:], "--out", str(out)]) == 2
        assert f"{out / name} is a link" in capsys.readouterr().err
    with pytest.raises(reader.UserError, match="another process"), new_folder(tmp_path / "new") as partial:
        (partial / "mine").touch()
        (tmp_path / "new/theirs").touch()  # of another command, which is done
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["theirs"]


def test_one_file_under_two_names_is_one_picture(run, tmp_path, capsys):
    for name in ("deep/er/a.png", "deep/1.png", "q/1.png"):
        save(tmp_path / name, picture(len(name)))
    (tmp_path / "q/l").symlink_to(tmp_path / "deep/er")
    (tmp_path / "deep/same.png").symlink_to(tmp_path / "deep/1.png")
    given = [tmp_path / "q/l/../1.png", tmp_path / "q/1.png", tmp_path / "q/../q/1.png"]
    names, _ = predict.name_images(given)
    assert [path.read_bytes() for path in names.values()] == [
        (tmp_path / p).read_bytes() for p in ("deep/1.png", "q/1.png")
    ]
    root = visa(tmp_path / "visa", extra="candle,test,normal,./3.JPG,")
    assert check.main([str(root)]) == 2 and "3.JPG is listed 2 times" in capsys.readouterr().out


EMPTY = ["predict RUN .", "predict RUN x --out .", "evaluate RUN --data=", "benchmark --data x --out ."]  # .: nothing


@pytest.mark.parametrize("words", EMPTY)
def test_an_empty_name_is_not_the_current_folder(words, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, *words = words.split()
    words = [{"RUN": str(run), ".": ""}.get(word, word) for word in words]
    assert importlib.import_module(f"adref.{name}").main(words) == 2
    assert "an empty name among the arguments" in capsys.readouterr().err


def test_values_of_masks_that_mean_nothing(tmp_path):
    field = SHAPE.astype(np.float32)
    for wrong in (-1, np.nan):
        field[0, 0] = wrong
        save(tmp_path / "m.tif", field)
        with pytest.raises(reader.UserError, match="negative values or NaN"):
            reader.read_mask(tmp_path / "m.tif")


def test_arrays_of_other_strides(small_run):
    run, image = load(small_run), picture(4, 60, 50)
    read_only = image[::-1, :, ::-1].copy()
    read_only.setflags(write=False)
    assert run.predict(image[::-1, :, ::-1]).score == run.predict(read_only).score


@pytest.mark.parametrize(
    "edit", [('"epoch"', '"epocx"'), ('"loss/l2": ', '"loss/l2": "a", "x": '), ('"lr": ', '"lr": 1e999, "x": ')]
)
def test_a_damaged_value_of_the_log_is_named(edit, run, capsys):
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], lines[1].replace(*edit), *lines[2:]]))
    assert lines[1].replace(*edit) != lines[1]
    assert evaluate.main([str(run), "--device", "cpu"]) == 2 and "line 2 is damaged" in capsys.readouterr().err


def test_an_edited_option_is_no_option_of_the_run(run, small_run, capsys):
    config = run / "config.json"
    config.write_text(config.read_text().replace('"score_window": 5', '"score_window": 7'))
    assert predict.main([str(run), str(small_run.parent / "data"), "--out", "-"]) == 2
    assert "not of these options" in capsys.readouterr().err


def test_a_bit_of_published_weights(tmp_path):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    place = whole.index(torch.arange(1000.0).numpy().tobytes()) + 401
    (tmp_path / "w.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    with pytest.raises(reader.UserError, match="w/data/0 in it is damaged"):
        directory.load_tensors(tmp_path / "w.pt", "w.pt cannot be read")


def test_a_profile_of_a_jpeg_does_not_stop_it(tmp_path):
    whole = encoded("JPEG", Image.fromarray(picture(3)), quality=95)
    text = b"".join(b"\xff" + kind + (len(body) + 2).to_bytes(2, "big") + body for kind, body in (
        (b"\xe2", b"ICC_PROFILE\0"), (b"\xe2", b"MPF\0II*\0garbage"), (b"\xe1", b"http://ns.adobe.com/xap/1.0/\0 <"),
    ))  # fmt: skip
    (tmp_path / "a.jpg").write_bytes(whole)
    (tmp_path / "b.jpg").write_bytes(whole[:2] + text + whole[2:])
    assert np.array_equal(reader.read_image(tmp_path / "a.jpg"), reader.read_image(tmp_path / "b.jpg"))


def test_notes_on_a_full_disk_change_no_exit_code(small_run, tmp_path):
    save(tmp_path / "p/a.png", picture(1))
    (tmp_path / "p/readme.txt").touch()
    for given, code in ((tmp_path / "p", 0), (tmp_path / "none", 2)):
        words = [sys.executable, "-m", "adref.predict", str(small_run), str(given), "--out", str(tmp_path / "o")]
        with open("/dev/full", "w") as full:
            assert subprocess.run(words, stderr=full, stdout=subprocess.DEVNULL, check=False).returncode == code
    assert len(rows_of(tmp_path / "o/scores.csv")) == 1
