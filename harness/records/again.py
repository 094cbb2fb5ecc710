"""Makes a recorded run again, by the code of today: `python -m harness.records.again results/RUN`.

The configuration is the record's own. The new record goes to runs/ (--records FOLDER says elsewhere), with weights,
which records that were copied or committed lack.
"""

import argparse
import sys
from pathlib import Path

from harness.config.configure import build, checked, own_keys
from harness.config.errors import UserError
from harness.config.experiment import Experiment
from harness.records import recorded
from harness.records.summary import show


def again(folder: Path, records: str) -> dict:
    """Makes the run recorded in `folder` again below `records`; returns its record."""
    config = recorded.config(folder)
    config = own_keys(config) | {"records": records, "force": False}
    experiment: Experiment = build(checked(config, "", annotation=Experiment))
    return experiment.run(recorded.config(folder) | {"records": records, "force": False})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a record")
    parser.add_argument("--records", default="runs", metavar="FOLDER")
    options = parser.parse_args()
    try:
        show(again(options.run, options.records))
    except UserError as error:
        sys.exit(error.paragraph())


if __name__ == "__main__":
    main()
