#!/bin/busybox sh
# Process 1 of an emulated machine: runs leaktrace on Go programs, and says on the console what both saw.
# Each line that begins with @@ is for xtask (judge.rs); a JSON answer is put on one line.

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t devtmpfs dev /dev 2>/dev/null

# say KEY WORD…: one line.
say() { echo "@@ $*"; }

# json KEY FILE: one line.
json() { echo "@@ $1 $(tr -d '\r\n' <"$2")"; }

# wait_for FILE PATTERN: until a line of the file has it, at most a minute and a half.
wait_for() {
	tries=0
	until grep -q "$2" "$1" 2>/dev/null; do
		tries=$((tries + 1))
		[ $tries -gt 900 ] && say "late $1 $2: $(tail -n 3 "$1" | tr '\r\n' '  ')" && return 1
		sleep 0.1
	done
}

# text PID: a checksum of the program's machine code in memory, where probes leave their mark.
text() {
	range=$(grep -m 1 ' r-xp ' /proc/$1/maps)
	range=${range%% *}
	first=$((0x${range%-*} / 4096))
	count=$((0x${range#*-} / 4096 - first))
	dd if=/proc/$1/mem bs=4096 skip=$first count=$count 2>/dev/null | md5sum | cut -c 1-32
}

# start FOLDER PROGRAM ARGUMENT…: a program that takes lines from descriptor 3; sets $program and $out.
start() {
	out=/tmp/out
	# The background job opens its files some time after this script goes on: nothing of the last may be there.
	rm -f /tmp/lines $out
	mkfifo /tmp/lines
	folder=$1 name=$2
	shift 2
	/go/$folder/$name "$@" </tmp/lines >$out &
	program=$!
	exec 3>/tmp/lines
	wait_for $out ready
}

stop() {
	exec 3>&-
	kill -9 $program
	wait $program 2>/dev/null
}

say kernel "$(uname -r)" "$(uname -m)"
leaktrace check --format json >/tmp/check.json
say check-exit $?
json check /tmp/check.json

# What needs time runs beside the rest.
for go in $(ls /go); do
	/go/$go/time-after-loop </dev/null >/dev/null &
	(
		leaktrace record --budget off --pid $! --duration 20s --format json -o /tmp/timers-$go.json 2>/tmp/timers-$go.err
		echo $? >/tmp/timers-$go.exit
	) &
done

for go in $(ls /go); do
	start $go mixed-states
	echo truth >&3
	wait_for $out states
	tail -n 1 $out >/tmp/truth.json
	json $go/truth /tmp/truth.json
	rm -f /tmp/snapshot.json
	leaktrace snapshot --pid $program --format json -o /tmp/snapshot.json
	say $go/snapshot-exit $?
	json $go/snapshot /tmp/snapshot.json
	stop

	start $go spawn-million -count 20000 -blocked 100
	before=$(text $program)
	rm -f /tmp/record.json /tmp/record.err
	# An emulated machine is slow: a probe costs so much there that the budget would be spent at once.
	LEAKTRACE_LOG=info leaktrace record --budget off --pid $program --duration 120s --format json -o /tmp/record.json 2>/tmp/record.err &
	recorder=$!
	wait_for /tmp/record.err 'probes are on'
	during=$(text $program)
	echo go >&3
	wait_for $out done
	kill -TERM $recorder
	wait $recorder
	say $go/record-exit $?
	json $go/record-words /tmp/record.err
	json $go/record /tmp/record.json
	say $go/text $before $during "$(text $program)"
	echo truth >&3
	wait_for $out states
	tail -n 1 $out >/tmp/truth.json
	json $go/spawn-truth /tmp/truth.json
	stop
done

for go in $(ls /go); do
	wait_for /tmp/timers-$go.exit .
	say $go/timers-exit "$(cat /tmp/timers-$go.exit)"
	json $go/timers-words /tmp/timers-$go.err
	json $go/timers /tmp/timers-$go.json
done

say end
poweroff -f
