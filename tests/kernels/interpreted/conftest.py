"""Kernels are defined differently under the interpreter, so these tests need a process that started with it.

``tests/kernels/test_in_interpreter.py`` starts one for each file or folder; without the variable they are not
collected.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py", "*/test_*.py"]
