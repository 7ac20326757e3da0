"""Entry point for `ray job submit`: the same run as `raysep run`, with the same arguments and exit code.

ray job submit --working-dir . -- python jobs/evaluate.py jobs/configs/quickstart.yaml
"""

import sys

from raysep.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
