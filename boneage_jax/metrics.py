age_summary = sex_summary = None
