// Prints what Go's own runtime says about this very program: one line for each address asked for, in the form
//
//	KIND PC FUNCTION FILE LINE
//
// with tabs between, where KIND is "entry" (the first instruction of main.main, which also tells where the program was loaded), "stack" (a
// return address of a real stack, each inlined call with a line of its own) or "sweep" (any instruction).
package main

import (
	"os"
	"runtime"
	"strconv"
)

type caller interface{ call(func()) }

type deep struct{ left int }

func (d deep) call(then func()) {
	if d.left == 0 {
		inlinedOnce(then)
		return
	}
	deep{d.left - 1}.call(then)
}

func inlinedOnce(then func()) { inlinedTwice(then) }

func inlinedTwice(then func()) { then() }

func generic[T any](value T, then func(T)) { then(value) }

func say(kind string, pc uintptr, frame runtime.Frame) {
	os.Stdout.WriteString(kind + "\t0x" + strconv.FormatUint(uint64(pc), 16) + "\t" + frame.Function + "\t" +
		frame.File + "\t" + strconv.Itoa(frame.Line) + "\n")
}

// one is the innermost call that the instruction at pc stands for.
func one(pc uintptr) runtime.Frame {
	frame, _ := runtime.CallersFrames([]uintptr{pc + 1}).Next()
	return frame
}

//go:noinline
func stack() {
	pcs := make([]uintptr, 64)
	pcs = pcs[:runtime.Callers(1, pcs)]
	frames := runtime.CallersFrames(pcs)
	for i := range pcs {
		frame, more := frames.Next()
		say("stack", pcs[i], frame)
		if !more {
			break
		}
	}
}

func sweep(from uintptr) {
	low, high := from, from
	for runtime.FuncForPC(low-4096) != nil {
		low -= 4096
	}
	for runtime.FuncForPC(high+4096) != nil {
		high += 4096
	}
	step := uintptr(97)
	if runtime.GOARCH == "arm64" {
		step = 100
	}
	for pc := low; pc < high; pc += step {
		// CallersFrames takes the byte behind the instruction, which must not be the next function's first.
		here, behind := runtime.FuncForPC(pc), runtime.FuncForPC(pc+1)
		if here != nil && behind != nil && behind.Entry() <= pc {
			say("sweep", pc, one(pc))
		}
	}
}

func main() {
	pc, _, _, _ := runtime.Caller(0)
	entry := runtime.FuncForPC(pc).Entry()
	say("entry", entry, one(entry))
	var c caller = deep{2}
	c.call(stack)
	generic(c, func(c caller) { c.call(stack) })
	done := make(chan bool)
	go func() {
		defer close(done)
		inlinedOnce(stack)
	}()
	<-done
	func() {
		defer func() {
			recover()
			stack()
		}()
		var nothing *deep
		nothing.left++
	}()
	sweep(entry)
}
