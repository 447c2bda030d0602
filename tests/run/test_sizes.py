"""Tables of defect sizes that a user gives to SRDAD."""

import pytest

from adref.train import main


@pytest.mark.slow
def test_sizes_of_defects_come_from_a_file(data, tmp_path, capsys):
    base = ["srdad", "--preset", "tiny", "--size", "64,64", "--data", data, "--epochs", 1, "--device", "cpu",
            "--patch-size", "histogram", "--out", tmp_path / "run"]  # fmt: skip

    def run(*words) -> int:
        return main(list(map(str, (*base, *words))))

    assert run() == 2 and "needs --defect-sizes FILE" in capsys.readouterr().err
    table = tmp_path / "sizes.csv"
    for text, words in (("", ": expected rows"), ("1,2,3\n4,5,x", ", line 2: expected"),
                        ("1,2,-3", ", line 1: expected"), ("1e308,1e308,1e308", ", line 1: expected")):  # fmt: skip
        table.write_text(text)
        assert run("--defect-sizes", table) == 2 and f"{table}{words}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    table.write_text("\ufeffHeight, Width, Weight\n20, 30, 1\n\n8,8,2.5\n", encoding="utf-8")
    assert run("--defect-sizes", table) == 0
