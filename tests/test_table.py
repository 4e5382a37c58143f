"""The table on disk reads back as it was written."""

import csv
import json

import pytest
from exif_files import folder

import exif_extractor
from geophoto import pictures
from geophoto.table import COLUMNS, read_records, read_table

# ---------------------------------------------------------------- the table


def test_table_reads_back_with_the_columns_of_the_contract(tmp_path):
    images, data = folder(tmp_path)
    (images / "=cmd.jpg").write_bytes(b"")
    exif_extractor.extract(images, data, workers=2)
    table = read_table(data, images)
    assert tuple(table.columns) == COLUMNS and len(table) == 7
    assert str(table["gps_latitude"].dtype) == "float64" and table["gps_latitude"].isna().sum() == 1
    assert table["orientation"].isna().sum() == 1
    assert list(table["filename"]) == list(pictures.find_photos(images))
    raw = (data / "exif_data.csv").read_bytes().decode()
    assert raw.count("\r\n") == 8 and "'=cmd.jpg" in raw
    with open(data / "exif_data.csv", encoding="utf-8", newline="") as file:
        sheet = list(csv.DictReader(file))
    for row, record in zip(sheet, read_records(data / "exif_data.json"), strict=True):
        for column in COLUMNS:
            value = "" if record[column] is None else str(record[column])
            assert row[column].removeprefix("'") == value
    records = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    (data / "exif_data.json").write_text(json.dumps(records, indent=1))  # written by another tool
    assert len(read_table(data)) == 7


@pytest.mark.parametrize(
    "content", [None, "", "[{", '[{"filename": "a.jpg"}]', '{"a": 1}', "[1]", '"x"']
)
def test_a_table_that_cannot_be_used_ends_with_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "exif_data.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        read_table(tmp_path)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "exif_data.json" in error and "python exif_extractor.py" in error
