import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtrec.data import readers
from mtrec.data.records import Splitter
from mtrec.dataconfig import InteractionsTable, ItemsTable
from mtrec.errors import ConfigError, DataError

HEADER = b"user_id,item_id\n"


def table_config(path, **config):
    return InteractionsTable(path=str(path), **config)


def read_all(path, **config):
    """Read everything: (user, item) of the rows without reason, and (row, reason) of the others."""
    table = table_config(path, **config)
    good, bad = [], []
    for piece in readers.plan(table, "."):
        for batch in readers.read(piece, table):
            for row in batch.to_pylist():
                if row.get("_reason") is None:
                    good.append((row["user_id"], row["item_id"]))
                else:
                    bad.append((row["_row"], row["_reason"]))
    return good, bad


def write(tmp_path, content, name="x.csv"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"u1", "wrong number of fields, expected 2"),
        (b"u1,i1,extra", "wrong number of fields, expected 2"),
        (b'"u1","i1","extra"', "wrong number of fields, expected 2"),
        (b"   ", "wrong number of fields, expected 2"),
        (b"u\xff1,i1", "row does not decode as utf-8"),
        (b"u\x001,i1", "row holds a NUL byte"),
        (b"user_id,item_id", "repeats the header"),
        (b'"user_id","item_id"', "repeats the header"),
        (b'"u1,i1', "row has a quote that is not closed"),
        (b'"u"1,i1', "row has text after a closing quote"),
    ],
)
def test_a_broken_row_costs_itself_only_and_has_its_true_reason(tmp_path, line, reason):
    path = write(tmp_path, HEADER + b"a,b\n" + line + b"\nc,d\n")
    good, bad = read_all(path)
    assert good == [("a", "b"), ("c", "d")]
    assert [found for _, found in bad] == [reason]


def test_the_text_of_a_row_that_does_not_decode_keeps_its_bytes_visible(tmp_path):
    _, bad = read_all(write(tmp_path, HEADER + b"u\xff,i\n"))
    assert bad == [("u\\xff,i", "row does not decode as utf-8")]


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"a,b\nc,d",
        HEADER + b"a,b\r\nc,d\n",
        HEADER.replace(b"\n", b"\r") + b"a,b\rc,d\r",
        b"\xef\xbb\xbf" + HEADER + b"a,b\nc,d\n",
        b"\n" + HEADER + b"\n\na,b\n\nc,d\n\n",
        b"item_id,other,user_id\nb,,a\nd,,c\n",
        b'"user_id","item_id"\n"a","b"\n"c",d\n',
    ],
    ids=["no end", "mixed ends", "old mac", "mark", "blank lines", "other order", "quotes"],
)
def test_every_shape_of_good_file_reads_the_same(tmp_path, content):
    assert read_all(write(tmp_path, content)) == ([("a", "b"), ("c", "d")], [])


def test_quoted_fields_hold_delimiters_quotes_and_line_ends(tmp_path):
    path = write(tmp_path, HEADER + b'"a,""x""\r\ny","b\n\nc"\nd,e\n')
    assert read_all(path) == ([('a,"x"\r\ny', "b\n\nc"), ("d", "e")], [])


def test_a_quote_inside_a_bare_field_is_only_a_character(tmp_path):
    assert read_all(write(tmp_path, HEADER + b'5" disc,i\n')) == ([('5" disc', "i")], [])


def test_after_a_quote_that_is_never_closed_reading_goes_on_with_the_next_line(tmp_path):
    path = write(tmp_path, HEADER + b'"a,b\nc,d\n"e","f"\ng,h\n')
    good, bad = read_all(path)
    assert good == [("c", "d"), ("e", "f"), ("g", "h")]
    assert bad == [('"a,b', "row has a quote that is not closed")]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(cells, cells), max_size=12))
@example([("a\u2028b", "\x1c"), ('"', '""'), ("\r", "\n"), ("a\nb,c,d", "e")])
def test_whatever_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    text = io.StringIO(newline="")
    lines = [("user_id", "item_id", "a", "b"), *(("u", "i", *row) for row in rows)]
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(lines)
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(text.getvalue().encode())
    table = table_config(path, columns={"a": {"kind": "category"}, "b": {"kind": "category"}})
    (piece,) = readers.plan(table, ".")
    read = [row for batch in readers.read(piece, table) for row in batch.to_pylist()]
    assert [(row["a"], row["b"]) for row in read] == rows


@pytest.mark.parametrize("size", [16, 17, 23, 64])
def test_the_size_of_chunks_changes_nothing(tmp_path, monkeypatch, size):
    lines = b'a,b\r\n"c\r\nc",d\r\n\r\n"open,x\ne,f\n"g"g,h\n'
    path = write(tmp_path, HEADER + lines * 3)
    whole = read_all(path)
    monkeypatch.setattr(readers, "CHUNK_BYTES", size)
    assert read_all(path) == whole


def test_places_number_the_rows_over_all_files(tmp_path):
    write(tmp_path, HEADER + b"a,b\nc,d\n", "1.csv")
    write(tmp_path, HEADER + b"e,f\n", "2.csv")
    table = table_config(tmp_path)
    batches = [b for piece in readers.plan(table, ".") for b in readers.read(piece, table)]
    places = pa.concat_tables(batches).column("_place").to_pylist()
    assert places == [0, 1, readers.PLACES_PER_FILE]


@pytest.mark.parametrize("encoding", ["latin-1", "gb18030", "utf-8-sig", "utf-16", "utf-16-le"])
def test_declared_encodings_are_read(tmp_path, encoding):
    word = "café" if encoding == "latin-1" else "服装"
    path = write(tmp_path, f"user_id,item_id\n{word},b\n".encode(encoding))
    assert read_all(path, encoding=encoding) == ([(word, "b")], [])


def test_an_unknown_encoding_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="latin-0"):
        readers.plan(table_config(write(tmp_path, HEADER), encoding="latin-0"), ".")


def test_compressed_files_are_unpacked(tmp_path):
    path = str(tmp_path / "x.csv.gz")
    with pa.output_stream(path) as stream:
        stream.write(HEADER + b"a,b\n")
    assert read_all(path) == ([("a", "b")], [])


def test_compressed_files_that_were_put_together_are_read_to_the_last(tmp_path):
    path = write(tmp_path, gzip.compress(HEADER + b"a,b\n") + gzip.compress(b"c,d"), "x.csv.gz")
    assert read_all(path) == ([("a", "b"), ("c", "d")], [])


@pytest.mark.parametrize(
    "content",
    [gzip.compress(HEADER + b"a,b\n" * 1000)[:-10], HEADER, b"\x1f\x8bno"],
    ids=["cut off", "not compressed", "broken"],
)
def test_a_compressed_file_that_cannot_be_unpacked_is_named(tmp_path, content):
    with pytest.raises(DataError, match=r"cannot read .*x.csv.gz as csv"):
        read_all(write(tmp_path, content, "x.csv.gz"))


def test_a_row_is_not_taken_for_part_of_a_field_that_a_stray_quote_closes(tmp_path):
    path = write(tmp_path, HEADER + b'"a,b\nc,d\ne,f"\ng,h\n')
    good, bad = read_all(path)
    assert good == [("c", "d"), ("e", 'f"'), ("g", "h")]
    assert bad == [('"a,b', "row has a quote that is not closed")]


@pytest.mark.parametrize("line", [b'a""b,c\n', b'5","x\n'], ids=["even", "one closed, one opened"])
def test_quotes_that_are_open_for_long_cost_linear_time(tmp_path, line, monkeypatch):
    scanned = 0
    scan = Splitter._scan

    def counted(self, *arguments):
        nonlocal scanned
        scanned += 1
        return scan(self, *arguments)

    monkeypatch.setattr(Splitter, "_scan", counted)
    read_all(write(tmp_path, HEADER + b'"open,x\n' + line * 10_000))
    # The header is looked for in the first chunk, then all is read.
    assert scanned < 80_000


def test_a_large_field_is_read_and_an_endless_quote_is_bounded(tmp_path):
    long = b"x" * (1 << 20)
    path = write(tmp_path, HEADER + b"a," + long + b'\n"' + long + b"\n" + b"c,d\n" * 3)
    good, bad = read_all(path)
    assert [len(item) for _, item in good] == [1 << 20, 1, 1, 1]
    assert [reason for _, reason in bad] == ["row has a quote that is not closed"]


def jsonl(tmp_path, *lines):
    return write(tmp_path, "\n".join(lines).encode(), "x.jsonl")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"user_id": "u", "item_id": ', "row is not JSON"),
        ("[1, 2]", "row is no JSON object"),
        ('{"user_id": 1.5, "item_id": "i"}', "user_id is a JSON number with a fraction or a"),
        ('{"user_id": true, "item_id": "i"}', "user_id is a JSON number with a fraction or a"),
        ('{"user_id": {"id": 1}, "item_id": "i"}', "user_id is a JSON object"),
        ('{"user_id": "\\ud800", "item_id": "i"}', "user_id holds half of a surrogate pair"),
        ("[" * 100_000, "row is JSON nested too deeply"),
    ],
    ids=range(7),
)
def test_a_broken_json_row_costs_itself_only(tmp_path, line, reason):
    path = jsonl(tmp_path, '{"user_id": "a", "item_id": 7}', line, '{"item_id": "d"}')
    good, bad = read_all(path)
    assert good == [("a", "7"), (None, "d")]
    assert len(bad) == 1
    assert bad[0][1].startswith(reason)


def test_json_integers_of_any_size_keep_their_digits(tmp_path):
    path = jsonl(tmp_path, json.dumps({"user_id": 2**53 + 1, "item_id": 10**30}))
    assert read_all(path)[0] == [(str(2**53 + 1), str(10**30))]


def test_a_json_list_is_one_text_where_a_text_is_wanted(tmp_path):
    texts = [["喜欢购物", "喜欢打折"], ["a", None, " ", 3], [], ["b", ["c"]]]
    path = jsonl(tmp_path, *(json.dumps({"item_id": "i", "text": text}) for text in texts))
    table = ItemsTable(path=str(path), columns={"text": {"kind": "text"}})
    (piece,) = readers.plan(table, ".")
    batch = pa.concat_tables(readers.read(piece, table))
    assert batch.column("text").to_pylist() == ["喜欢购物, 喜欢打折", "a, 3", "", None]
    assert batch.column("_reason").to_pylist() == [None, None, None, "text is a nested list"]


@pytest.mark.parametrize(
    "content", ['[{"item_id": "i"},\n{"item_id": "j"}]', '{\n"item_id": "i"\n}']
)
def test_json_that_is_no_json_lines_is_refused_with_the_remedy(tmp_path, content):
    with pytest.raises(DataError, match="expected JSON Lines: one object a line"):
        read_all(write(tmp_path, content.encode(), "x.json"))


def test_json_values_are_told_as_the_column_wants_them(tmp_path):
    columns = {"n": {"kind": "number"}, "c": {"kind": "category"}}
    rows = [
        {"user_id": "u", "item_id": "i", "n": True, "c": True},
        {"user_id": "u", "item_id": "i", "n": 0.1, "c": 3.0},
        {"user_id": "u", "item_id": "i", "n": None, "c": 12},
    ]
    table = table_config(jsonl(tmp_path, *map(json.dumps, rows)), columns=columns)
    (piece,) = readers.plan(table, ".")
    batch = pa.concat_tables(readers.read(piece, table))
    assert batch.column("n").to_pylist() == ["1", "0.1", None]
    assert batch.column("c").to_pylist() == ["true", "3", "12"]


def test_parquet_is_cut_at_row_groups_and_numbered_through(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "ROWS_PER_PIECE", 4)
    path = tmp_path / "x.parquet"
    ids = [f"u{n}" for n in range(10)]
    pq.write_table(pa.table({"user_id": ids, "item_id": ids}), path, row_group_size=2)
    table = table_config(path)
    pieces = readers.plan(table, ".")
    assert [piece.row_groups for piece in pieces] == [(0, 1), (2, 3), (4,)]
    rows = pa.concat_tables([b for piece in pieces for b in readers.read(piece, table)])
    assert rows.column("user_id").to_pylist() == ids
    assert rows.column("_place").to_pylist() == list(range(10))


def test_folders_and_globs_name_several_files(tmp_path):
    hidden = ("a/_temporary.csv", "a/.hidden.csv", "a/_SUCCESS", "_temporary/1.csv")
    for name in ("a/1.csv", "a/2.csv", "b/1.csv", *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, HEADER, name)

    def names(path):
        files = readers.input_files(table_config(path), str(tmp_path))
        return [file[0].removeprefix(str(tmp_path) + "/") for file in files]

    assert names("a") == ["a/1.csv", "a/2.csv"]
    assert names("*/1.csv") == ["a/1.csv", "b/1.csv"]
    assert names("**/1.csv") == ["a/1.csv", "b/1.csv"]
    assert names("a/*") == ["a/1.csv", "a/2.csv"]
    assert names("a/_*") == ["a/_SUCCESS", "a/_temporary.csv"]
    write(tmp_path, HEADER, "a/old_1.csv")
    write(tmp_path, HEADER, "1.csv")
    assert names("**/1.csv") == ["1.csv", "a/1.csv", "b/1.csv"]
    assert names("a/**/1.csv") == ["a/1.csv"]
    assert names("b/**") == ["b/1.csv"]
    assert names("a/2.csv") == ["a/2.csv"]


def test_a_path_that_is_there_is_no_pattern(tmp_path):
    (tmp_path / "of [2024]").mkdir()
    write(tmp_path, HEADER, "of [2024]/x.csv")
    for path in ("of [2024]", "of [2024]/x.csv"):
        (file,) = readers.input_files(table_config(path), str(tmp_path))
        assert file[0] == str(tmp_path / "of [2024]/x.csv")


def test_input_that_may_not_be_read_is_named_with_the_remedy(tmp_path, monkeypatch):
    path = write(tmp_path, HEADER, "x.csv")

    def refuse(piece):
        raise PermissionError(13, "Permission denied", piece.path)

    monkeypatch.setattr(readers, "_open", refuse)
    with pytest.raises(DataError, match=r"cannot read .*x.csv as csv: .*denied.*\nlet the user"):
        readers.plan(table_config(path), ".")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("When listing objects: AWS Error ACCESS_DENIED")

    monkeypatch.setattr(readers, "_walk", refuse)
    with pytest.raises(DataError, match=r"cannot read .*: .*DENIED\nlook at the network"):
        readers.plan(table_config(tmp_path), ".")


@pytest.mark.parametrize("path", ["absent.csv", "*.parquet", "folder"])
def test_input_that_is_not_there_is_named(tmp_path, path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=path.replace("*", r"\*")):
        readers.plan(table_config(path), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b"user_id,item\na,b\n"),
        ("x.jsonl", b'{"user_id": "a", "item": "b"}\n'),
    ],
)
def test_a_missing_column_names_the_file_the_column_and_what_was_found(tmp_path, name, content):
    with pytest.raises(DataError) as caught:
        readers.plan(table_config(write(tmp_path, content, name)), ".")
    first, remedy = str(caught.value).splitlines()
    assert first.endswith(f'{name}: no column "item_id"; columns found: user_id, item')
    assert "configuration" in remedy


def test_a_missing_parquet_column_and_a_file_that_is_no_parquet(tmp_path):
    pq.write_table(pa.table({"user_id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match='no column "item_id"'):
        readers.plan(table_config(tmp_path / "x.parquet"), ".")
    with pytest.raises(DataError, match=r"cannot read .*y.parquet as parquet"):
        readers.plan(table_config(write(tmp_path, b"no", "y.parquet")), ".")


def test_a_column_twice_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(DataError, match='two columns "item_id"'):
        readers.plan(table_config(write(tmp_path, b"user_id,item_id,item_id\n")), ".")
    with pytest.raises(DataError, match="is empty"):
        readers.plan(table_config(write(tmp_path, b"\n")), ".")
