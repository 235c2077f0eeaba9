"""Use of finished runs: loading, recommending, exporting."""
