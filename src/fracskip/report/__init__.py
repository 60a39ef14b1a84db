"""Records become one self-contained HTML page.

`write_report` reads evaluation and run records and writes a single file that needs no network:
text, tables and vector figures, each naming the record that its numbers come from. Reading records
(`load_record`) needs only fracskip itself; writing the page needs `fracskip[report]`.
"""

from fracskip.report.html import write_report
from fracskip.report.reading import load_record

__all__ = ["load_record", "write_report"]
