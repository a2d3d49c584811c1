# What failed, from the output of go test (with -v or without) or go vet, in 25 lines: each failed test with
# its messages (the first line and the last three), what does not compile, and how ended what ended otherwise.
function cut(line) { return substr(line, 1, 240) "\n" }
function last(ring, n, size,   i, s) { # lines of the n that ring was given
  for (i = size - 1; i >= 0; i--) if (n > i) s = s ring[(n - i) % size]
  return s
}
function message() { # is over; it is of a test of which it may not be known yet that it fails
  text = head last(rest, more, 3)
  if (text != "" && ++messages[test] <= 4) {
    if (failed) out = out text
    else held[test] = held[test] text
  }
  head = ""
  more = 0
}
/^=== (RUN|CONT|NAME|PAUSE) / { message(); test = $3; failed = 0; next }
/^ *--- FAIL: / { message(); test = $3; failed = told = 1; out = out $0 "\n" held[test]; held[test] = ""; next }
/^ *--- (PASS|SKIP): / { message(); held[$3] = test = ""; failed = 0; next }
/^ *[A-Za-z0-9_]+\.go:[0-9]+: / { message(); head = cut($0); next }
/^(panic|fatal error): / { message(); test = $1; told = 1; out = out cut($0); next }
test == "panic:" { if (/^\t+(Test|.*_test\.go:[0-9]+)/ && ++messages[test] <= 4) out = out cut($0); if (!/^FAIL/) next }
/^# |^(vet: )?[^ ]+\.go:[0-9]+:[0-9]+: / { told = 1; out = out cut($0); next }
/^(ok|FAIL|\?) *\t/ {
  message()
  if ($1 == "FAIL") out = out (told ? "" : last(recent, seen, 8)) $0 "\n"
  split("", messages)
  split("", held)
  test = ""
  told = failed = seen = 0
  next
}
/^(PASS|FAIL|exit status [0-9]+| *)$/ { next }
head != "" { rest[++more % 3] = cut($0); next }
{ recent[++seen % 8] = cut($0) }
END {
  message()
  n = split(out == "" ? last(recent, seen, 8) : out, lines, "\n") - 1
  for (i = 1; i <= n && i <= 25; i++) print lines[i]
  if (n > 25) print "and " n - 25 " lines more, above"
}
