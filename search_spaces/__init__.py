"""What a trial may choose: functions from a trial to a typed recipe and sampling."""
