#!/usr/bin/env perl
# Runs a command as a Slurm job, once or as an array of numbered jobs, each with its own log, and waits for the end.
#
#   slurm.pl [--gpu N] [--num_threads N] [--mem 4G] [--time 4:00:00] [--num_nodes N] [--max-jobs-run N]
#            [--file-wait 60] [--config conf/slurm.conf] [JOB=1:n] exp/log.JOB.txt command argument...
#
# JOB is replaced in the log's name and in every argument; the arguments reach the command as they are, without a
# shell in between. The configuration says what the options mean to sbatch; without --config it is conf/slurm.conf, or
# the one beside this script's directory. The logs must lie where both this machine and the nodes see them; a file that
# a job wrote at its end may take --file-wait seconds to be seen here.
# Exit status 1 when a job fails, is cancelled, runs out of time or is lost; jobs still waiting are then cancelled.
# SIGINT, SIGTERM and SIGHUP cancel the jobs (Slurm: SIGTERM, then SIGKILL) and wait for them; the second leaves at once.

use strict;
use warnings;
use Cwd qw(getcwd);
use File::Basename qw(basename dirname);
use File::Path qw(make_path remove_tree);
use File::Spec;
use File::Temp qw(tempdir);
use FindBin;
use POSIX ();
use Text::ParseWords qw(shellwords);
use Time::HiRes qw(sleep time);

my $LONGEST_SLEEP = 2;     # seconds between looks at the files of exit status
my $LONGEST_POLL = 30;     # seconds between questions to Slurm
my $ANSWER_WAIT = 60;      # seconds until a question to Slurm is given up
my $OVER = qr/^(BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|GONE|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|REVOKED|TIMEOUT)$/;

my $file_wait = 60;        # seconds
my $signalled = 0;         # exit status that belongs to the signal
my $signals = 0;

sub fail { print STDERR "slurm.pl: $_[0]\n"; exit 1 }

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
    fail("usage: slurm.pl [options] [JOB=1:n] log.JOB.txt command argument...") if @ARGV < 2;
    for (qw(gpu num_threads num_nodes max_jobs_run file_wait)) {
        fail("--$_ must be a whole number, not $option->{$_}")
            if exists $option->{$_} && $option->{$_} !~ /^\d+$/;
    }
    return ($option, $job, @ARGV);
}

sub check {
    my ($job, $log, @command) = @_;
    my ($operator) = grep { /^(\||\|\||&&|;|<|>|>>|2>|2>&1|&)$/ } @command;
    fail("no shell reads '$operator'; put the command line in: bash -c '...'") if defined $operator;
    fail("$log: Slurm writes no logs in directories with a backslash in their name") if (getcwd() . $log) =~ /\\/;
    return unless $job;
    fail("empty job range $job->{name}=$job->{first}:$job->{last}") if $job->{first} > $job->{last};
    fail("$job->{name} must occur in the log's name, not only $log")
        if $job->{first} != $job->{last} && $log !~ /$job->{name}/;
}

# The command's words, and what each option and its value, or "*", adds to them.
sub read_config {
    my ($file) = @_;
    $file //= -e "conf/slurm.conf" ? "conf/slurm.conf" : "$FindBin::RealBin/../conf/slurm.conf";
    open(my $in, "<", $file) or fail("cannot read $file: $!");
    my $config = {file => $file, command => ["sbatch"], option => {}, default => {}};
    while (my $line = <$in>) {
        $line =~ s/(^|\s)#.*//s;
        next if $line !~ /\S/;
        my ($key, @words) = shellwords($line);
        $key //= "";    # a quotation mark without its partner
        if ($key eq "command" && @words) {
            $config->{command} = \@words;
        } elsif ($key eq "option" && @words && $words[0] =~ /^([A-Za-z]\w*)=(.*)$/) {
            $config->{option}{$1}{$2} = [@words[1 .. $#words]];
        } elsif ($key eq "default" && @words == 1 && $words[0] =~ /^([A-Za-z]\w*)=(.*)$/) {
            $config->{default}{$1} = $2;
        } else {
            fail("$file, line $.: expected 'command ...', 'option NAME=VALUE ...' or 'default NAME=VALUE'");
        }
    }
    return $config;
}

# Words for sbatch from the options.
sub resources {
    my ($config, $option) = @_;
    my %value = (%{$config->{default}}, %$option);
    my @all;
    for my $name (sort keys %value) {
        my $rules = $config->{option}{$name}
            or fail("--$name: $config->{file} does not say what it means to sbatch; add: option $name=* --...\$0");
        my $words = $rules->{$value{$name}} // $rules->{"*"}
            or fail("--$name $value{$name}: $config->{file} has no line for this value, nor 'option $name=* ...'");
        push @all, map { s/\$0/$value{$name}/gr } @$words;
    }
    return @all;
}

# Exit status and output of a command, which may take some seconds (0: as long as it likes). Signals from the
# terminal do not reach it.
sub capture {
    my ($limit, @command) = @_;
    my $pid = open(my $out, "-|") // fail("cannot fork: $!");
    if ($pid == 0) {
        setpgrp(0, 0);
        open(STDIN, "<", "/dev/null");
        open(STDERR, ">&", \*STDOUT);
        no warnings "exec";
        exec { $command[0] } @command;
        print STDERR "cannot run $command[0]: $!\n";
        POSIX::_exit(127);
    }
    local $SIG{ALRM} = sub { kill("KILL", $pid) };
    alarm($limit);
    my $text = join("", <$out>);
    close($out);
    alarm(0);
    return ($?, $text);
}

sub submit {
    my (@command) = @_;
    # Of a job in which this runs: sbatch and the new job would take them for their own.
    delete $ENV{$_} for grep { /^(SLURM_(?!CONF$|CLUSTERS$|JWT$)|SRUN_|CUDA_VISIBLE_DEVICES$)/ } keys %ENV;
    my ($code, $text) = capture(0, @command);
    my ($id, $cluster) = $text =~ /^(\d+)(?:;(\S+))?$/m;
    fail("$command[0] failed: " . ($text =~ s/\s+/ /gr || "no message")) if $code || !$id;
    return {id => $id, where => $cluster ? ["--clusters=$cluster"] : []};
}

# State of each job by its number: undef when Slurm does not answer, GONE when it no longer knows the job.
sub ask_slurm {
    my ($slurm, @ids) = @_;
    my ($code, $text) = capture($ANSWER_WAIT, "squeue", @{$slurm->{where}}, "--noheader", "--array", "--states=all",
        "--jobs=$slurm->{id}", "--format=%i %T");
    if ($code && $text !~ /Invalid job id/) {
        print STDERR "slurm.pl: no answer about job $slurm->{id}, waiting: " . ($text =~ s/\s+/ /gr || "squeue hangs") . "\n"
            unless $slurm->{warned}++;
        return undef;
    }
    my %state;
    while ($text =~ /^\s*$slurm->{id}(?:_(\d+))?\s+([A-Z_]+)\s*$/mg) { $state{$1 // ""} = $2 }
    # Jobs cancelled before they started are one line without a number.
    return {map { $_ => $state{$_} // $state{""} // "GONE" } @ids};
}

sub cancel {
    my ($slurm, @which) = @_;
    my ($code, $text) = capture($ANSWER_WAIT, "scancel", @{$slurm->{where}}, @which, $slurm->{id});
    return if !$code || $text =~ /Invalid job id/;    # it has ended
    print STDERR "slurm.pl: scancel $slurm->{id} failed: " . ($text =~ s/\s+/ /gr) . "\n";
}

# Exit status of the jobs that wrote one. Listing the directory makes network file systems look anew.
sub read_statuses {
    my ($directory) = @_;
    opendir(my $handle, $directory) or return {};
    my %code;
    for my $id (grep { /^\d+$/ } readdir($handle)) {
        open(my $in, "<", "$directory/$id") or next;
        my $line = <$in>;
        $code{$id} = int($line) if defined $line && $line =~ /^\d+$/;
    }
    return \%code;
}

# How a job ended: "" well, or a reason; undef as long as that is open. A status other than 0 is believed when Slurm
# is done with the job: one that gives way to others is queued again. Slurm forgets ended jobs after minutes, but single
# jobs of an array that were cancelled while waiting at once: those have no log.
sub outcome {
    my ($code, $state, $waited, $log) = @_;
    return "" if defined $code && $code == 0;
    my $late = $waited >= $file_wait;
    return defined $code && $late ? "code $code" : undef unless defined $state;
    return undef unless $state =~ $OVER;
    return "code $code" . ($state =~ /^(COMPLETED|FAILED|GONE)$/ ? "" : ", $state") if defined $code;
    return $state unless $state =~ /^(COMPLETED|GONE)$/;
    return "CANCELLED" if $state eq "GONE" && !-e $log && ($late || $waited > 10);
    return $late ? "lost: Slurm says $state, but it left no exit status" : undef;
}

sub wait_for_jobs {
    my ($slurm, $directory, $log) = @_;
    my @ids = keys %$log;
    my (%result, %since, $states, $no_more, $cancelled);
    my ($pause, $poll, $asked) = (0.1, 1, time());
    while (my @open = grep { !defined $result{$_} } @ids) {
        if ($signalled && !$cancelled++) {
            cancel($slurm);
            $poll = 1;
        }
        if (time() - $asked >= $poll) {
            $states = ask_slurm($slurm, @ids);
            $asked = time();
            $poll = 2 * $poll > $LONGEST_POLL ? $LONGEST_POLL : 2 * $poll;
        }
        my $codes = read_statuses($directory);    # after Slurm was asked: who is done by then has written
        for my $id (@open) {
            my ($code, $state) = ($codes->{$id}, $states && $states->{$id});
            $since{$id} //= time() if defined $code || ($state // "") =~ $OVER;
            $result{$id} = outcome($code, $state, time() - ($since{$id} // time()), $log->{$id});
            $poll = 2 if defined $code && !defined $result{$id} && $poll > 2;
        }
        last unless grep { !defined $result{$_} } @ids;
        if (!$no_more && !$cancelled && grep { $_ } values %result) {
            $no_more = 1;
            cancel($slurm, "--state=PENDING");
        }
        sleep($pause);
        $pause = 1.5 * $pause > $LONGEST_SLEEP ? $LONGEST_SLEEP : 1.5 * $pause;
    }
    return \%result;
}

# What the job could not write itself.
sub finish_logs {
    my ($log, $result) = @_;
    for my $id (grep { $result->{$_} && $result->{$_} !~ /^code/ && -e $log->{$_} } keys %$result) {
        open(my $out, ">>", $log->{$id}) or next;
        print $out "# Ended (Slurm: $result->{$id}) at " . localtime() . "\n";
    }
}

sub report {
    my ($log, $result) = @_;
    my @bad = grep { $result->{$_} } sort { $a <=> $b } keys %$result;
    my @failed = grep { -e $log->{$_} || $result->{$_} ne "CANCELLED" } @bad;
    @failed = @bad unless @failed;
    my $rest = @bad > @failed ? sprintf(", %d not started", @bad - @failed) : "";
    printf STDERR "slurm.pl: %d of %d jobs failed%s, log: %s\n", scalar(@failed), scalar(keys %$result), $rest,
        join(" ", map { "$log->{$_} ($result->{$_})" } @failed);
    open(my $in, "<", $log->{$failed[0]}) or return;
    my @lines = grep { !/^# (Accounting|Ended)/ } <$in>;
    my ($reason) = grep { /^llmst_\w+: error: / } @lines;    # what srun and torchrun add would hide it
    @lines = $reason if defined $reason;
    splice(@lines, 0, @lines - 10) if @lines > 10;
    print STDERR @lines;
}

my ($queue, $directory);
END {
    local $?;
    remove_tree($directory) if defined $directory;
    rmdir $queue if defined $queue;    # if no other is at work there
}
my ($option, $job, $log, @command) = parse_command_line();
check($job, $log, @command);
my $config = read_config(delete $option->{config});
my $at_once = delete $option->{max_jobs_run};
$file_wait = delete $option->{file_wait} if exists $option->{file_wait};
my $title = basename($log) =~ s/\.(log|txt)$//r;
$title =~ s/\W?$job->{name}// if $job;
my @resources = resources($config, $option);

my %log = (1 => $log);
%log = map { $_ => $log =~ s/$job->{name}/$_/gr } $job->{first} .. $job->{last} if $job;
for (values %log) {
    make_path(dirname($_));
    unlink $_;    # Slurm appends: a job that it queues again keeps what its log says
}
$queue = File::Spec->rel2abs(dirname((sort values %log)[0])) . "/q";
make_path($queue);
$directory = tempdir("$title.XXXXXX", DIR => $queue);
my $output = $log =~ s/%/%%/gr;
$output =~ s/$job->{name}/%a/g if $job;
$output = (getcwd() =~ s/%/%%/gr) . "/$output" unless $output =~ m{^/};
my @array = $job ? "--array=$job->{first}-$job->{last}" . ($at_once ? "%$at_once" : "") : ();

my %status_of = (INT => 130, TERM => 143, HUP => 129);
for my $name (grep { ($SIG{$_} // "") ne "IGNORE" } keys %status_of) {
    $SIG{$name} = sub { $signals++; $signalled ||= $status_of{$name} };
}
my $slurm = submit(@{$config->{command}}, "--parsable", "--job-name=$title", "--output=$output", "--open-mode=append",
    @array, @resources, "$FindBin::RealBin/slurm_job.pl", $directory, $job ? $job->{name} : "", @command);
for my $name (grep { ref $SIG{$_} } keys %status_of) {
    my $first = $SIG{$name};
    $SIG{$name} = sub {
        $first->();
        return if $signals < 2;
        cancel($slurm);
        exit $signalled;
    };
}
my $result = wait_for_jobs($slurm, $directory, \%log);
finish_logs(\%log, $result);
if ($signalled) {
    print STDERR "slurm.pl: interrupted, job $slurm->{id} is cancelled\n";
    exit $signalled;
}
exit 0 unless grep { $_ } values %$result;
report(\%log, $result);
exit 1;
