"""Fit the model on the dataset and leave a bundle.

    ray job submit --working-dir . -- python jobs/train.py --config jobs/configs/movielens.yaml

It is `mtrec train`: the same options, the same exit codes. `--working-dir` makes a copy
for the job to run in, so `run.workdir` must be an absolute path or a URI.
"""

import sys

from mtrec.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
