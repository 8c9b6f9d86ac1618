"""Records of runs as one page and as Markdown, two runs compared, the README's table: `python -m benchmarks.report`."""

from .reading import ReportError, read_results
from .readme import readme_block, readme_table

__all__ = ["ReportError", "read_results", "readme_block", "readme_table"]
