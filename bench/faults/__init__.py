"""The fault table: one row per fault. Tests cause each fault on a worker in production mode; docs/operate.md shows it.

A row has the error code that the caller gets (None for a success), the maximum seconds from submission to the end of
the job, and whether the same worker runs the next job. `cause` is the function that causes the fault and returns the
job.
"""

from __future__ import annotations

from bench.faults import connection, jobs, process  # noqa: F401 - each adds its rows to FAULT_ROWS
from bench.faults.elsewhere import FAULTS_TESTED_ELSEWHERE, FaultTestedElsewhere
from bench.faults.rows import FAULT_ROWS, FaultRow

__all__ = ["FAULTS_TESTED_ELSEWHERE", "FAULT_ROWS", "FaultRow", "FaultTestedElsewhere"]
