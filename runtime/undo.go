package runtime

import "errors"

// undo is a stack of what has to be done to give back what was acquired.
type undo []func() error

func (u *undo) push(f func() error) { *u = append(*u, f) }

// run undoes everything, the latest first, and leaves the stack empty.
func (u *undo) run() error {
	var errs []error
	for len(*u) > 0 {
		last := len(*u) - 1
		f := (*u)[last]
		*u = (*u)[:last]
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}
