"""What a trace's folder holds: the files, their columns, and the version of both.

| file | what it holds |
| --- | --- |
| `manifest.json` | format, version, whether the recording came to its end, what ran, where |
| `ops.arrow` | the ops, each with its place in the source |
| `coordinates.arrow` | tokens, padding and sets of tokens, by their numbers |
| `forms.arrow` | how values lie that were digested: shape, dtype, which coordinate each digest stands for |
| `rows.arrow` | the values that went by, in order: op, call, form, digests |
| `weights.arrow` | digests of parameters and buffers, a number for each row |
| `calls/*.safetensors` | of each call: its layout, its inputs, and what the model returned |
| `values/*.safetensors` | values that were asked for |

The Arrow files are streams: of one that ends in the middle, all whole batches can be read. A row is written after
whatever it refers to.
"""

from __future__ import annotations

import pyarrow as pa

FORMAT = "forkpoint-trace"
VERSION = 1
"""Its history is in docs/trace-format.md."""

MANIFEST, CALLS, VALUES = "manifest.json", "calls", "values"

INTS = pa.list_(pa.int64())
IDS = pa.list_(pa.int32())

TABLES: dict[str, pa.Schema] = {
    "ops": pa.schema(
        [
            ("root", pa.int32()),  # which of the manifest's models it was seen in
            ("module", pa.string()),  # path in there
            ("function", pa.string()),
            ("output", pa.int32()),
            ("file", pa.string()),
            ("line", pa.int32()),
            ("column", pa.int32()),
            ("definition", pa.int32()),  # first line of the function around it
            ("chain", pa.string()),  # the place in a form that is the same in every process
            ("code", pa.string()),
            ("variable", pa.string()),
        ]
    ),
    "coordinates": pa.schema(
        [
            ("kind", pa.int8()),  # 3 a token, 2 padding, 1 a set
            ("stream", pa.string()),
            ("sample", pa.int64()),
            ("position", pa.int64()),
            ("members", IDS),  # of a set
            ("row", pa.int64()),
            ("place", pa.int64()),
            ("columns", pa.int64()),
        ]
    ),
    "forms": pa.schema(
        [
            ("status", pa.string()),
            ("shape", INTS),
            ("dtype", pa.string()),
            ("floating", pa.bool_()),
            ("reason", pa.string()),
            ("kind", pa.string()),  # of its cells
            ("ids", IDS),
            ("open_dims", IDS),
            ("open_sizes", IDS),
            ("row_dims", IDS),
            ("keys", INTS),  # [cells, 4], or nothing
            ("width", INTS),  # one, or one for each cell
        ]
    ),
    "rows": pa.schema(
        [
            ("op", pa.int32()),
            ("call", pa.int32()),
            ("form", pa.int32()),
            ("back", pa.int64()),  # how many rows back this value is, if it was there before
            ("reason", pa.string()),  # why it could not be digested after all
            ("digests", INTS),
            ("flat", INTS),  # with dimensions taken in that may follow the tokens
        ]
    ),
    "weights": pa.schema(
        [
            ("root", pa.int32()),
            ("name", pa.string()),
            ("kind", pa.string()),  # parameter or buffer
            ("shape", INTS),
            ("dtype", pa.string()),
            ("digests", INTS),  # one for each index of the first dimension
            ("columns", INTS),  # of a matrix that is a parameter, one for each index of the second
        ]
    ),
}
