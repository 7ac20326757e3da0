import pickle

from raysep.errors import ConfigError, RaysepError, RunDirError, StageError


def test_exit_codes_tell_wrong_use_from_failure() -> None:
    assert (RaysepError.exit_code, StageError.exit_code) == (1, 1)
    assert (ConfigError.exit_code, RunDirError.exit_code) == (2, 2)


def test_config_error_lists_every_problem_and_survives_pickling() -> None:
    error = ConfigError(["one", "two"], "x.yaml")
    assert str(error) == "x.yaml: 2 problems\n  - one\n  - two"
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, again.source, str(again)) == (["one", "two"], "x.yaml", str(error))
