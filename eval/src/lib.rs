//! Tasks, scores with intervals, compressors to compare with, and reports.
