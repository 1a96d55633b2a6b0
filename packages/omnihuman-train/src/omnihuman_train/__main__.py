"""``python -m omnihuman_train``, the way ``torchrun -m omnihuman_train`` starts its processes."""

from omnihuman_train.cli import main

raise SystemExit(main())
