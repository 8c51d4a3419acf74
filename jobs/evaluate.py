"""Judge the bundle on held-out events beside the baselines.

    ray job submit --working-dir . -- python jobs/evaluate.py --config jobs/configs/movielens.yaml

It is `mtrec evaluate`: the same options (`--twins` too), the same exit codes. `--working-dir` makes
a copy for the job to run in, so `run.workdir` must be an absolute path or a URI.
"""

import sys

from mtrec.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
