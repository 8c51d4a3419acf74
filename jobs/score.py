"""Write every user's best items as Parquet.

    ray job submit --working-dir . -- python jobs/score.py --config jobs/configs/movielens.yaml

It is `mtrec score`: the same options, the same exit codes. `--working-dir` makes a copy
for the job to run in, so `run.workdir` must be an absolute path or a URI.
"""

import sys

from mtrec.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "score")
    main()
