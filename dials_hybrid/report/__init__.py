"""The report of a refinement: one JSON file for programs, one HTML page for people.

`contract` collects the numbers; `write_json` and `write_html` store them.
"""

from .json_contract import contract, write_json
from .page import write_html

__all__ = ["contract", "write_html", "write_json"]
