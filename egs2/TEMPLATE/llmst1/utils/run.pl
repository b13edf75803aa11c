#!/usr/bin/env perl
# Runs a command on this machine, once or as numbered parallel jobs, each with its own log.
#
#   run.pl [--gpu N] [--num_threads N] [--max-jobs-run N] [JOB=1:n] exp/log.JOB.txt command argument...
#
# JOB is replaced in the log's name and in every argument. The arguments reach the command as they are,
# without a shell in between. Other options of the family (--mem, --time, ...) are for schedulers: read and
# ignored. At most as many jobs run at a time as there are processors (or sets of --gpu N visible GPUs, each
# job getting a set of its own through CUDA_VISIBLE_DEVICES); --max-jobs-run says otherwise.
# Exit status 1 when a job fails; no further job is then started. SIGINT, SIGTERM and SIGHUP end the jobs too.

use strict;
use warnings;
use File::Basename qw(dirname);
use File::Path qw(make_path);
use POSIX ();

my $parent = $$;
my (%running, @failed, $signalled);    # pid -> {log, start, devices}

sub fail { print STDERR "run.pl: $_[0]\n"; exit 1 }

sub parse_command_line {
    my ($option, $job) = ({}, undef);
    while (@ARGV) {
        if ($ARGV[0] =~ /^--?([A-Za-z]\S*)$/) {
            my $name = $1 =~ s/-/_/gr;
            shift @ARGV;
            fail("option $name needs a value") unless @ARGV;
            $option->{$name} = shift @ARGV;
        } elsif ($ARGV[0] =~ /^(\w+)=(\d+)(?::(\d+))?$/) {
            $job = {name => $1, first => $2, last => $3 // $2};
            shift @ARGV;
        } else {
            last;
        }
    }
    fail("usage: run.pl [options] [JOB=1:n] log.JOB.txt command argument...") if @ARGV < 2;
    for (qw(gpu num_threads max_jobs_run)) {
        fail("--$_ must be a whole number, not $option->{$_}")
            if exists $option->{$_} && $option->{$_} !~ /^\d+$/;
    }
    return ($option, $job, @ARGV);
}

sub check {
    my ($job, $log, @command) = @_;
    my ($operator) = grep { /^(\||\|\||&&|;|<|>|>>|2>|2>&1|&)$/ } @command;
    fail("no shell reads '$operator'; put the command line in: bash -c '...'") if defined $operator;
    return unless $job;
    fail("empty job range $job->{name}=$job->{first}:$job->{last}") if $job->{first} > $job->{last};
    fail("$job->{name} must occur in the log's name, not only $log")
        if $job->{first} != $job->{last} && $log !~ /$job->{name}/;
}

sub visible_gpus {
    return grep { $_ ne "-1" } split /,/, $ENV{CUDA_VISIBLE_DEVICES} if defined $ENV{CUDA_VISIBLE_DEVICES};
    my @lines = grep { /^GPU \d+/ } split /\n/, `nvidia-smi -L 2>/dev/null` // "";
    return (0 .. $#lines);
}

sub start {
    my ($log, $devices, @command) = @_;
    make_path(dirname($log));
    open(my $out, ">", $log) or fail("cannot write $log: $!");
    print $out "# @command\n# Started at " . localtime() . "\n#\n";
    close($out);
    my $pid = fork() // fail("cannot fork: $!");
    if ($pid == 0) {
        setpgrp(0, 0);    # a group of its own, so that its children end with it
        $SIG{$_} = "DEFAULT" for grep { ($SIG{$_} // "") ne "IGNORE" } qw(INT TERM HUP);
        $ENV{CUDA_VISIBLE_DEVICES} = join(",", @$devices) if @$devices;
        open(STDIN, "<", "/dev/null");
        open(STDOUT, ">>", $log);
        open(STDERR, ">&", \*STDOUT);
        no warnings "exec";
        exec { $command[0] } @command;
        print STDERR "run.pl: cannot run $command[0]: $!\n";
        POSIX::_exit(127);
    }
    setpgrp($pid, 0);    # also here: whichever comes first
    $running{$pid} = {log => $log, start => time(), devices => $devices};
    kill("TERM", -$pid) if $signalled;    # the signal came while this job was being started
}

# Waits until one job ends; returns the GPUs it had.
sub reap {
    my $pid = waitpid(-1, 0);
    return () if $pid <= 0;
    my $status = ($? & 127) ? 128 + ($? & 127) : $? >> 8;
    my $job = delete $running{$pid} or return ();
    if (open(my $out, ">>", $job->{log})) {
        printf $out "# Accounting: time=%d\n", time() - $job->{start};
        print $out "# Ended (code $status) at " . localtime() . "\n";
    }
    push @failed, $job->{log} if $status != 0;
    return @{$job->{devices}};
}

# First signal: ask the jobs to end (training saves a checkpoint). Second: end them.
sub end_jobs {
    my ($name) = @_;
    POSIX::_exit(143) if $$ != $parent;
    my $kind = $signalled ? "KILL" : "TERM";
    $signalled //= {INT => 130, TERM => 143, HUP => 129}->{$name};
    kill($kind, -$_) || kill($kind, $_) for keys %running;
}

sub report {
    my ($total, $not_started) = @_;
    my $rest = $not_started ? ", $not_started not started" : "";
    printf STDERR "run.pl: %d of %d jobs failed%s, log: %s\n", scalar(@failed), $total, $rest, "@failed";
    open(my $in, "<", $failed[0]) or exit 1;
    my @lines = grep { !/^# (Accounting|Ended)/ } <$in>;
    my ($reason) = grep { /^llmst_\w+: error: / } @lines;    # what torchrun adds would hide it
    @lines = $reason if defined $reason;
    splice(@lines, 0, @lines - 10) if @lines > 10;
    print STDERR @lines;
    exit 1;
}

my ($option, $job, $log, @command) = parse_command_line();
check($job, $log, @command);
my $gpus_each = $option->{gpu} // 0;
my @gpus = $gpus_each ? visible_gpus() : ();
fail("--gpu $gpus_each asked for, but only " . @gpus . " visible") if @gpus && @gpus < $gpus_each;
my $processors = `env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc` || 1;    # nproc heeds them; path.sh sets one
my $at_once = $option->{max_jobs_run} || POSIX::floor($processors / ($option->{num_threads} || 1)) || 1;
if (@gpus) {
    my $sets = POSIX::floor(@gpus / $gpus_each);
    $at_once = $sets if !$option->{max_jobs_run} || $sets < $at_once;
}

for my $name (qw(INT TERM HUP)) {
    $SIG{$name} = \&end_jobs unless ($SIG{$name} // "") eq "IGNORE";
}
my @ids = $job ? ($job->{first} .. $job->{last}) : ("");
my $total = @ids;
while (@ids && !@failed && !$signalled) {
    my $id = shift @ids;
    my @words = ($log, @command);
    if ($job) { s/$job->{name}/$id/g for @words }
    start(shift @words, [splice(@gpus, 0, $gpus_each)], @words);
    push @gpus, reap() while %running >= $at_once && !$signalled;
}
reap() while %running;
exit $signalled if $signalled;
report($total, scalar @ids) if @failed;
