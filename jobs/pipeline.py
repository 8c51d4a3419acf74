"""Run every stage, skipping what is done and still valid.

    ray job submit --working-dir . -- python jobs/pipeline.py --config jobs/configs/movielens.yaml

It is `mtrec run`: the same options, the same exit codes. `--working-dir` makes a copy
for the job to run in, so `run.workdir` must be an absolute path or a URI.
"""

import sys

from mtrec.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
