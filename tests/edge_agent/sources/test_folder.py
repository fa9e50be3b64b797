"""A folder as a source: its order, its formats, what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from edge_agent.sources import Source, open_source
from edge_agent.sources.folder import read_picture
from protos.errors import ContextError, PictureError, SourceError
from tests.edge_agent.test_sources import save


def test_a_folder_yields_every_format_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("c.png", "a.jpg", "d.webp", "b.bmp", "e.jpeg"):
        save(tmp_path / name)
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "deeper").mkdir()
    source = open_source(str(tmp_path))
    captures = list(source)
    assert len(source) == 5
    assert [c.name for c in captures] == ["a.jpg", "b.bmp", "c.png", "d.webp", "e.jpeg"]
    assert all(c.picture is not None and c.picture.mode == "RGB" for c in captures)
    assert captures[0].captured_at == pytest.approx((tmp_path / "a.jpg").stat().st_mtime)
    assert isinstance(source, Source)


def test_a_file_that_is_no_picture_is_reported_and_the_next_one_still_comes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    whole = save(tmp_path / "whole.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.csv").write_text("notes")
    (tmp_path / "d.png").write_bytes(b"")
    captures = list(open_source(str(tmp_path)))
    assert [c.name for c in captures] == ["a.png", "b.png", "c.csv", "d.png", "whole.png"]
    for capture in captures[:4]:
        assert capture.picture is None
        assert isinstance(capture.error, PictureError)
        assert capture.name in str(capture.error)
    assert captures[4].picture is not None and captures[4].error is None


def test_a_text_is_read_from_a_file_that_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" Zoe wohnt in K\u00f6ln. \n", encoding="utf-8")
    (tmp_path / "b.TXT").write_bytes(b"\xff\xfe")
    (tmp_path / "c.txt").write_bytes(b"a" * ((1 << 20) + 1))
    one, two, three = open_source(str(tmp_path))
    assert (one.text, one.picture, one.error) == ("Zoe wohnt in K\u00f6ln.", None, None)
    for capture, said in ((two, "b.TXT cannot be read"), (three, "longer than 1048576 bytes")):
        assert capture.text is None and isinstance(capture.error, ContextError)
        assert said in str(capture.error)


def test_a_folder_as_a_model_engineer_keeps_it_is_a_source(tmp_path: Path) -> None:
    """Texts may be lines of one file; questions and labels beside them are no captures."""
    rows = ['{"name": "a", "text": " Amp lives in Rome. "}', "", '{"name": "b"}', "no json"]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    for name in ("questions.jsonl", "labels.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "z.txt").write_text("Bob")
    source = open_source(str(tmp_path))
    captures = list(source)
    assert len(source) == 4
    assert [c.name for c in captures] == ["a", "texts.jsonl:3", "texts.jsonl:4", "z.txt"]
    assert [c.text for c in captures] == ["Amp lives in Rome.", None, None, "Bob"]
    assert isinstance(captures[1].error, ContextError)
    assert [c.name for c in open_source(str(tmp_path / "texts.jsonl"))][0] == "a"


def test_a_format_outside_the_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path, "GIF")
    with pytest.raises(PictureError, match="PNG, JPEG, WEBP, BMP"):
        read_picture(path)


def test_a_picture_too_large_to_decode_is_a_picture_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match="too large"):
        read_picture(save(tmp_path / "a.png"))


def test_a_picture_is_turned_upright_and_loses_its_alpha(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_picture(save(tmp_path / "a.jpg", exif=exif)).size == (8, 12)
    Image.new("RGBA", (3, 3), (1, 2, 3, 0)).save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").mode == "RGB"


def test_one_file_is_a_source_of_one_capture(tmp_path: Path) -> None:
    assert [c.name for c in open_source(str(save(tmp_path / "x.png")))] == ["x.png"]


@pytest.mark.parametrize("uri", ["{}", "folder:{}", "folder://{}"])
def test_the_ways_to_name_a_folder_mean_the_same(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    save(folder / "x.png")
    path = str(folder) if uri == "{}" else str(folder).replace(" ", "%20")
    assert len(open_source(uri.format(path))) == 1


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is empty: put PNG"):
        open_source(str(tmp_path))


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_source(str(tmp_path / "nowhere"))


@pytest.mark.timeout(20)
def test_a_pipe_or_a_folder_among_the_pictures_is_counted_and_never_waited_for(
    tmp_path: Path,
) -> None:
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "d.png").symlink_to(tmp_path / "nowhere")
    source = open_source(str(tmp_path))
    assert [c.name for c in source] == ["a.png"]
    assert source.skipped == {"pipe_or_device": 1, "subfolder": 1, "broken_link": 1}
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceError, match="passed over: 1 pipe or device, 1 subfolder"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match="neither a file nor a directory"):
        open_source(str(tmp_path / "b.png"))


@pytest.mark.timeout(20)
def test_lines_or_texts_that_are_pipes_are_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "texts.jsonl")
    with pytest.raises(SourceError, match="passed over: 1 pipe"):
        open_source(str(tmp_path))
    path = tmp_path / "a.txt"
    path.write_text("Zoe")
    source = open_source(str(tmp_path))
    path.unlink()  # it becomes a pipe after it was listed
    os.mkfifo(path)
    (capture,) = source
    assert isinstance(capture.error, ContextError) and "not a regular file" in str(capture.error)


def test_a_byte_order_mark_is_no_part_of_a_text_or_its_name(tmp_path: Path) -> None:
    row = '{"name": "a", "text": "Amp lives in Rome."}\n'
    (tmp_path / "texts.jsonl").write_text(row, encoding="utf-8-sig")
    (tmp_path / "z.txt").write_text("Bob", encoding="utf-8-sig")
    assert [c.text for c in open_source(str(tmp_path))] == ["Amp lives in Rome.", "Bob"]
    (tmp_path / "texts.jsonl").write_text(row, encoding="utf-16")
    with pytest.raises(SourceError, match="UTF-16; save it as UTF-8"):
        open_source(str(tmp_path))
