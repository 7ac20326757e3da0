"""Entry point for `ray job submit`: the same as `raysep sweep`, with the same arguments and exit code.

ray job submit --working-dir . -- python jobs/sweep.py jobs/sweeps/nightly.yaml --root s3://BUCKET/sweeps/nightly
"""

import sys

from raysep.cli import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
