"""Pictures for the report page: matplotlib draws, the page's style sheet colours."""
