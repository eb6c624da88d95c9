# pandas' inline types widen most results to unions that nobody can narrow (a column may be a DataFrame, a
# scalar a Series): checking against them finds no defects and asks for casts everywhere. Here it is untyped.
from typing import Any

def __getattr__(name: str) -> Any: ...
