"""The report as people and scripts meet it: files, the page, the commands."""

import json
import re
import shutil

import pytest
from test_eval import Rolling, footage

from minigenie.__main__ import main
from minigenie.eval.measure import evaluate
from minigenie.eval.report import headline, summary, write_report
from minigenie.eval.run import differences, read_reports, rows


@pytest.fixture(scope="module")
def measured(trained, toy, tmp_path_factory):
    """A copy of the trained world with its report, made by the command."""
    folder = tmp_path_factory.mktemp("measured") / "world"
    shutil.copytree(trained, folder)
    main(["eval", str(folder), str(toy.folder), "--clips", "6", "--device", "cpu"])
    return folder


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_the_page_needs_nothing_but_itself(measured):
    page = (measured / "report.html").read_text()
    assert "<script" not in page
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:|#)\w', page.replace("xlink:href", "href"))
    assert len(page) < 5_000_000
    assert not re.findall(r"\$\w|{[{%]|%}", page)


def test_the_page_shows_the_report_and_training(measured):
    page, report = (measured / "report.html").read_text(), json.loads((measured / "report.json").read_text())
    for name, value in headline(report).items():
        assert name in page
        assert value in page
    for title in ("LAM: action perplexity", "delta-PSNR (dB)", "SSIM", "collapsed actions", "code perplexity"):
        assert title in page
    assert page.count("image/webp") >= 8 + 8 + len(report["actions"]["usage"])
    assert page.count("<svg") == page.count("</svg>") >= 10
    assert all(note.split("(")[0] in page for note in report["notes"])


def test_names_from_outside_are_escaped(measured, tmp_path):
    report, scenes = evaluate(Rolling(), footage(tmp_path / "data", actions=False), clips=4)
    report["dataset"]["source"] = "<script>alert(1)</script>"
    write_report(tmp_path / "out", report, scenes, title="<b>mine</b>")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "<b>mine</b>" not in page
    assert "&lt;b&gt;mine" in page
    assert "no true actions to compare" in page
    assert not (tmp_path / "out" / "pictures" / "curves.png").exists()


def test_pictures_for_documents(measured):
    there = {path.name for path in (measured / "pictures").iterdir()}
    assert there == {"reconstructions.png", "rollouts.png", "actions.png", "actions.gif", "curves.png"}


def test_the_summary_has_the_numbers_of_the_report(measured, capsys):
    report = json.loads((measured / "report.json").read_text())
    text = "\n".join(summary(report))
    assert all(name in text and value in text for name, value in headline(report).items())
    assert f"{report['tokenizer']['psnr']:.2f} [" in text
    assert re.search(rf"delta-PSNR, frame 4 +{report['rollout']['delta_psnr']['4']['mean']:.2f} ", text)
    assert " ".join(f"{share:.0%}" for share in report["actions"]["usage"]) in text
    main(["info", str(measured)])
    assert text in capsys.readouterr().out


def test_worlds_side_by_side(measured, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(measured, other)
    report = json.loads((other / "report.json").read_text())
    report["tokenizer"]["psnr"] = 12.34
    (other / "report.json").write_text(json.dumps(report))
    main(["eval", str(measured), str(other), "--compare", "--out", str(tmp_path)])
    shown, page = capsys.readouterr().out, (tmp_path / "compare.html").read_text()
    assert "12.34" in shown
    assert "12.34" in page
    assert "note" not in shown
    assert page.count("data:image/png") == 4
    reports = read_reports([measured, other])
    assert ["tokenizer SSIM", *[headline(report)["tokenizer SSIM"]] * 2] in rows(reports)


def test_a_report_with_measures_that_are_gone_still_stands_beside_others(measured, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(measured, old)
    report = json.loads((old / "report.json").read_text())
    for way in ("from_1", "from_4", "repeat_last"):
        far = report["long_rollouts"][way]
        far |= {"fid": 1.5, "fvd": 2.5}
        far |= {name.replace("ssim", "lpips"): value for name, value in far.items() if name.startswith("ssim")}
    report["notes"].append("not measured: FVD (its weights are missing)")
    (old / "report.json").write_text(json.dumps(report))
    main(["info", str(old)])
    assert "not measured: FVD" in capsys.readouterr().out
    main(["eval", str(measured), str(old), "--compare", "--out", str(tmp_path)])
    assert "note" not in capsys.readouterr().out
    assert all(one == other for _, one, other in rows(read_reports([measured, old])))


def test_worlds_measured_on_different_footage_are_no_fair_comparison(measured):
    report = json.loads((measured / "report.json").read_text())
    other = {**report, "dataset": {**report["dataset"], "split": "elsewhere"}, "seed": 9}
    found = differences({"a": report, "b": other})
    assert len(found) == 2
    assert "different footage" in found[0]
    assert "different seeds" in found[1]
    assert "different versions of eval" in differences({"a": report, "b": {**report, "version": 1}})[0]


def test_bad_input_of_eval_is_one_line(measured, toy, tmp_path, capsys):
    assert "takes a world and a dataset, not 1" in refused(capsys, "eval", measured)
    assert "clips is 1" in refused(capsys, "eval", measured, toy.folder, "--clips", "1")
    assert "is not a dataset" in refused(capsys, "eval", measured, tmp_path)
    assert "is not a world" in refused(capsys, "eval", tmp_path, toy.folder)
    assert "two different folders" in refused(capsys, "eval", measured, measured, "--compare")
    assert "has no report.json" in refused(capsys, "eval", measured, tmp_path, "--compare")
    (tmp_path / "report.json").write_text(
        '{"tokenizer": {"psnr": 3}, "actions": {"usage": []}, "rollout": {"delta_psnr": {}}}'
    )
    assert "of another MiniGenie" in refused(capsys, "eval", measured, tmp_path, "--compare")
    (tmp_path / "report.json").write_text('{"tokenizer": 3}')
    assert "is damaged" in refused(capsys, "eval", measured, tmp_path, "--compare")
    assert not (measured / "compare.html").exists()


def test_footage_of_another_size_is_one_line(measured, tmp_path, capsys):
    from minigenie.data.dataset import DatasetWriter, Episode

    about = {"frame_size": (32, 32), "fps": 10, "source": "x", "generator": "x", "split": "test", "settings": {}}
    writer = DatasetWriter(tmp_path / "data", **about)
    writer.write(0, __import__("numpy").zeros((20, 32, 32, 3), "uint8"), [Episode(0, 0, 20)])
    writer.close()
    line = refused(capsys, "eval", measured, tmp_path / "data", "--out", tmp_path / "out")
    assert "32x32" in line
    assert "64x64" in line
    assert not (tmp_path / "out").exists()
